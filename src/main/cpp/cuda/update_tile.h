// The parts of the batched update: chunks of the factor and of x on their way through shared memory, the products of
// ranks and rows, and the outputs.
#pragma once

#include "cuda/convert.h"
#include "cuda/update_plan.h"

namespace lora4j {

// Rows of a matrix, contiguous each; aligned: to 16 bytes.
struct RowsOf {
  const char* data;
  int64_t stride;  // bytes
  DType type;
  bool aligned;
};

template <DType type>
L4_DEVICE float element(const char* data, int64_t index) {
  return load(data, index, type);
}

// Two neighbours in shared memory.
template <DType type>
L4_DEVICE float2 pair_at(const char* data) {
  if constexpr (type == DType::f32) return *reinterpret_cast<const float2*>(data);
  return widen_pair<type>(*reinterpret_cast<const uint32_t*>(data));
}

// Brings 16 bytes of a row, from element `at` on, to shared memory; zeros after the row's end.
L4_DEVICE void bring(char* to, const char* row, int64_t at, int64_t width, DType type, bool aligned) {
  int size = static_cast<int>(size_of(type));
  int64_t left = (width - at) * size;
  int bytes = left >= 16 ? 16 : left > 0 ? static_cast<int>(left) : 0;
  if (aligned) {
    copy_async(to, bytes > 0 ? row + at * size : row, bytes);
    return;
  }
  for (int i = 0; i < 16; i += size) {
    if (size == 4) {
      *reinterpret_cast<uint32_t*>(to + i) = i < bytes ? *reinterpret_cast<const uint32_t*>(row + at * 4 + i) : 0u;
    } else {
      *reinterpret_cast<uint16_t*>(to + i) =
          i < bytes ? *reinterpret_cast<const uint16_t*>(row + at * 2 + i) : static_cast<uint16_t>(0);
    }
  }
}

// One pass: `ranks` rows of a and `rows` rows of x, chunk by chunk.
struct Pass {
  RowsOf a;  // from the first rank of the pass on
  RowsOf x;
  const int32_t* row;  // numbers of the rows of x
  int ranks;
  int rows;
  int64_t width;
  int chunk;  // elements
  char* shared;
  int stage_bytes;

  L4_DEVICE int chunks() const { return static_cast<int>((width + chunk - 1) / chunk); }

  // Brings chunk c; every call closes a group of copies, also one after the last chunk.
  L4_DEVICE void start(int c) const {
    if (c < chunks()) {
      char* stage = shared + c % update_stages * stage_bytes;
      bring_rows(stage, a, ranks, c, [](int line) { return line; });
      bring_rows(stage + ranks * update_chunk_stride, x, rows, c, [&](int line) { return row[line]; });
    }
    commit_copies();
  }

 private:
  template <typename Number>
  L4_DEVICE void bring_rows(char* to, const RowsOf& from, int lines, int c, Number number) const {
    constexpr int pieces = update_chunk_bytes / 16;
    const int elements = from.type == DType::f32 ? 4 : 8;
    for (int i = static_cast<int>(threadIdx.x); i < lines * pieces; i += update_threads) {
      int line = i / pieces, piece = i % pieces;
      if (piece * elements >= chunk) continue;
      bring(to + line * update_chunk_stride + piece * 16, from.data + number(line) * from.stride,
            static_cast<int64_t>(c) * chunk + piece * elements, width, from.type, from.aligned);
    }
  }
};

// The products of a rank with m rows of x, by eight lanes that run two of the sixteen chains each; all eight get them.
template <DType a_type, DType x_type, int m>
L4_DEVICE void products(const Pass& pass, float (&product)[2]) {
  constexpr int a_size = Type<a_type>::bytes, x_size = Type<x_type>::bytes;
  const ProductOwner own = ProductOwner::of(static_cast<int>(threadIdx.x));
  const bool active = own.rank / 4 * 4 < pass.ranks && own.row < pass.rows;  // the same for a warp
  int a_at = min(own.rank, pass.ranks - 1) * update_chunk_stride + 2 * own.lane * a_size;
  int x_at[m];
#pragma unroll
  for (int i = 0; i < m; i++) {
    int row = min(own.row + i * ProductOwner::rows_apart, pass.rows - 1);
    x_at[i] = (pass.ranks + row) * update_chunk_stride + 2 * own.lane * x_size;
  }
  float2 sum[m] = {};
  const int chunks = pass.chunks();
  for (int c = 0; c < update_stages - 1; c++) pass.start(c);
  for (int c = 0; c < chunks; c++) {
    wait_copies<update_stages - 2>();
    __syncthreads();
    pass.start(c + update_stages - 1);
    if (!active) continue;
    const char* stage = pass.shared + c % update_stages * pass.stage_bytes;
    int64_t left = pass.width - static_cast<int64_t>(c) * pass.chunk;
    int steps = left < pass.chunk ? static_cast<int>((left + 15) / 16) : pass.chunk / 16;
#pragma unroll (m == 1 ? 8 : 4)
    for (int s = 0; s < steps; s++) {
      float2 left_pair = pair_at<a_type>(stage + a_at + s * 16 * a_size);
#pragma unroll
      for (int i = 0; i < m; i++) {
        float2 right_pair = pair_at<x_type>(stage + x_at[i] + s * 16 * x_size);
        sum[i].x = fmaf(left_pair.x, right_pair.x, sum[i].x);
        sum[i].y = fmaf(left_pair.y, right_pair.y, sum[i].y);
      }
    }
  }
  wait_copies<0>();
  __syncthreads();
  if (!active) return;
#pragma unroll
  for (int i = 0; i < m; i++) {
#pragma unroll
    for (int half = 4; half > 0; half /= 2) {
      sum[i].x += shuffle_xor(sum[i].x, half, 8);
      sum[i].y += shuffle_xor(sum[i].y, half, 8);
    }
    product[i] = sum[i].x + sum[i].y;
  }
}

// sum[t] = b . v[t], k ascending, for n rows of products; wide: sixteen bytes of b at once.
template <DType type, int n>
L4_DEVICE void dots(const char* b, const float* const (&v)[n], int rank, bool wide, float (&sum)[n]) {
  constexpr int elements = Type<type>::in_16_bytes;
  int k = 0;
  if (wide) {
#pragma unroll (n == 8 ? 1 : 4)
    for (; k + elements <= rank; k += elements) {
      float left[elements];
      widen_all<type>(*reinterpret_cast<const uint4*>(b + k * Type<type>::bytes), left);
#pragma unroll
      for (int t = 0; t < n; t++) {
#pragma unroll
        for (int e = 0; e < elements; e += 4) {
          float4 right = *reinterpret_cast<const float4*>(v[t] + k + e);
          sum[t] = fmaf(left[e], right.x, sum[t]);
          sum[t] = fmaf(left[e + 1], right.y, sum[t]);
          sum[t] = fmaf(left[e + 2], right.z, sum[t]);
          sum[t] = fmaf(left[e + 3], right.w, sum[t]);
        }
      }
    }
  }
#pragma unroll 1
  for (; k < rank; k++) {
    float left = element<type>(b, k);
#pragma unroll
    for (int t = 0; t < n; t++) sum[t] = fmaf(left, v[t][k], sum[t]);
  }
}

}  // namespace lora4j
