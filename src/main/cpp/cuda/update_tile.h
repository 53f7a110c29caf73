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
__device__ __forceinline__ float element(const char* data, int64_t index) {
  return load(data, index, type);
}

// Two neighbours in shared memory.
template <DType type>
__device__ __forceinline__ float2 pair_at(const char* data) {
  if constexpr (type == DType::f32) return *reinterpret_cast<const float2*>(data);
  return widen_pair<type>(*reinterpret_cast<const uint32_t*>(data));
}

// Brings 16 bytes of a row, from element `at` on, to shared memory; zeros after the row's end.
__device__ __forceinline__ void bring(char* to, const char* row, int64_t at, int64_t width, DType type, bool aligned) {
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

  __device__ __forceinline__ int chunks() const { return static_cast<int>((width + chunk - 1) / chunk); }

  // Brings chunk c; every call closes a group of copies, also one after the last chunk.
  __device__ __forceinline__ void start(int c) const {
    if (c < chunks()) {
      char* stage = shared + c % update_stages * stage_bytes;
      bring_rows(stage, a, ranks, c, [](int line) { return line; });
      bring_rows(stage + ranks * update_chunk_stride, x, rows, c, [&](int line) { return row[line]; });
    }
    commit_copies();
  }

 private:
  template <typename Number>
  __device__ __forceinline__ void bring_rows(char* to, const RowsOf& from, int lines, int c, Number number) const {
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
__device__ __forceinline__ void products(const Pass& pass, float (&product)[2]) {
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
      sum[i].x += __shfl_xor_sync(0xffffffffu, sum[i].x, half, 8);
      sum[i].y += __shfl_xor_sync(0xffffffffu, sum[i].y, half, 8);
    }
    product[i] = sum[i].x + sum[i].y;
  }
}

// sum[t] = b . v[t], k ascending, for n rows of products; wide: sixteen bytes of b at once.
template <DType type, int n>
__device__ __forceinline__ void dots(const char* b, const float* const (&v)[n], int rank, bool wide, float (&sum)[n]) {
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

// Blocks that share a group's products: as many as the host launches together on this architecture.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
constexpr int device_cluster = 8;
#else
constexpr int device_cluster = 1;
#endif

__device__ __forceinline__ void cluster_arrive() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.arrive.release;" ::: "memory");
#endif
}

__device__ __forceinline__ void cluster_wait() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.wait.acquire;" ::: "memory");
#else
  __syncthreads();
#endif
}

// Writes to the same place in the shared memory of block `block` of the cluster; each block is written once.
__device__ __forceinline__ void store_in(float* at, int block, float value) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  unsigned here = static_cast<unsigned>(__cvta_generic_to_shared(at)), there;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(here), "r"(block));
  asm volatile("st.shared::cluster.f32 [%0], %1;" ::"r"(there), "f"(value) : "memory");
#else
  if (block == 0) *at = value;
#endif
}

}  // namespace lora4j
