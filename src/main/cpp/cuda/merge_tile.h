// The parts of the tiled merge: filling slices of the factors, multiplying them, and a thread's rows of w.
#pragma once

#include "cuda/convert.h"
#include "cuda/merge_plan.h"

namespace lora4j {

// Pieces of 16 bytes that a thread fetches of a slice of float32, the widest type.
template <int width>
constexpr int pieces_for = merge_slice * width / 4 / merge_threads;

// A slice of a factor: where it begins, how many ranks it has, and where the factor ends across.
struct SliceAt {
  int64_t k;
  int ranks;
  int64_t j;
  int64_t size;
};

// A thread's pieces of a slice with their numbers in `raw`, those inside the factor only.
template <int width, int elements, int threads, typename Work>
L4_DEVICE void for_pieces(Reach reach, const SliceAt& at, Work work) {
  constexpr int count = merge_slice * width / elements;
#pragma unroll(threads == merge_threads ? count / threads : 1)
  for (int i = 0; i < (count + threads - 1) / threads; i++) {
    int number = i * threads + static_cast<int>(threadIdx.x);
    Piece piece = reach == Reach::across ? Piece::across(number, width, elements) : Piece::down(number, width, elements);
    if (number < count && piece.k < at.ranks && at.j + piece.j < at.size) work(number, piece);
  }
}

// Queues the copies of a slice, as it is in memory, to the thread's own pieces.
template <int width, int threads>
L4_DEVICE void fetch(const Factor& factor, const SliceAt& at, uint4* raw) {
  if (factor.reach == Reach::gather) return;
  auto queue = [&](int number, const Piece& piece) {
    int64_t index = (at.k + piece.k) * factor.k_stride + (at.j + piece.j) * factor.j_stride;
    copy_async(raw + number, static_cast<const char*>(factor.data) + index * size_of(factor.type));
  };
  if (factor.type == DType::f32) {
    for_pieces<width, 4, threads>(factor.reach, at, queue);
  } else {
    for_pieces<width, 8, threads>(factor.reach, at, queue);
  }
}

// Turns the thread's own pieces into float32 in the slice's layout, once they are there.
template <int width, bool split>
L4_DEVICE void spread(const Factor& factor, const SliceAt& at, const uint4* raw, float* slice) {
  using Layout = SliceLayout<width, split>;
  if (factor.reach == Reach::gather) {
    bool down = factor.k_stride == 1;
    for (int i = static_cast<int>(threadIdx.x); i < merge_slice * width; i += merge_threads) {
      int k = down ? i % merge_slice : i / width;
      int j = down ? i / merge_slice : i % width;
      if (k < at.ranks && at.j + j < at.size) slice[k * Layout::stride + Layout::element(j)] = factor.at(at.k + k, at.j + j);
    }
    return;
  }
  with_type(factor.type, [&](auto type) {
    constexpr int elements = decltype(type)::in_16_bytes;
    for_pieces<width, elements, merge_threads>(factor.reach, at, [&](int number, const Piece& piece) {
      float value[elements];
      widen_all<decltype(type)::value>(raw[number], value);
      if (factor.reach == Reach::across) {
#pragma unroll
        for (int e = 0; e < elements; e += 4) {
          float* to = slice + piece.k * Layout::stride + Layout::chunk((piece.j + e) / 4);
          *reinterpret_cast<float4*>(to) = {value[e], value[e + 1], value[e + 2], value[e + 3]};
        }
      } else {
        float* to = slice + piece.k * Layout::stride + Layout::element(piece.j);
#pragma unroll
        for (int e = 0; e < elements; e++) to[e * Layout::stride] = value[e];
      }
    });
  });
}

// sum += b a over the ranks of a slice, in their order. a and b point to the thread's first chunks.
template <int a_stride, int a_second, int b_stride, int b_second>
L4_DEVICE void multiply(const float* a, const float* b, int ranks, float (&sum)[8][8]) {
  auto step = [&](int k) {
    float4 a0 = *reinterpret_cast<const float4*>(a + k * a_stride);
    float4 a1 = *reinterpret_cast<const float4*>(a + k * a_stride + a_second);
    float4 b0 = *reinterpret_cast<const float4*>(b + k * b_stride);
    float4 b1 = *reinterpret_cast<const float4*>(b + k * b_stride + b_second);
    const float right[8] = {a0.x, a0.y, a0.z, a0.w, a1.x, a1.y, a1.z, a1.w};
    const float left[8] = {b0.x, b0.y, b0.z, b0.w, b1.x, b1.y, b1.z, b1.w};
#pragma unroll
    for (int i = 0; i < 8; i++) {
#pragma unroll
      for (int j = 0; j < 8; j++) sum[i][j] = fmaf(left[i], right[j], sum[i][j]);
    }
  };
  int k = 0;
#pragma unroll 1
  for (; k + 8 <= ranks; k += 8) {
#pragma unroll
    for (int n = 0; n < 8; n++) step(k + n);
  }
#pragma unroll 1
  for (; k < ranks; k++) step(k);
}

// A thread's eight elements of a row of w, as they are in memory. Wide: whole pieces of 16 bytes, which the launch has
// made sure are aligned; otherwise element by element.
template <DType type, bool wide>
struct WRow {
  using Layout = SliceLayout<merge_tile_cols, type == DType::f32>;
  static constexpr int pieces = type == DType::f32 ? 2 : 1;
  static constexpr int elements = 8 / pieces;

  uint4 bits[pieces];

  // first: the tile's first column; group: the thread's.
  L4_DEVICE void read(const Matrix& w, int64_t row, int64_t first, int group) {
    if constexpr (wide) {
#pragma unroll
      for (int p = 0; p < pieces; p++) {
        int64_t col = first + Layout::column(group, p * elements);
        if (col < w.cols) bits[p] = *reinterpret_cast<const uint4*>(address(w, row, col));
      }
    } else {
      float value[8];
#pragma unroll
      for (int e = 0; e < 8; e++) {
        int64_t col = first + Layout::column(group, e);
        value[e] = col < w.cols ? w.at(row, col) : 0.0f;
      }
      set(value);
    }
  }

  L4_DEVICE void get(float (&value)[8]) const {
#pragma unroll
    for (int p = 0; p < pieces; p++) {
      float part[elements];
      widen_all<type>(bits[p], part);
#pragma unroll
      for (int e = 0; e < elements; e++) value[p * elements + e] = part[e];
    }
  }

  L4_DEVICE void set(const float (&value)[8]) {
#pragma unroll
    for (int p = 0; p < pieces; p++) {
      float part[elements];
#pragma unroll
      for (int e = 0; e < elements; e++) part[e] = value[p * elements + e];
      bits[p] = narrow_all<type>(part);
    }
  }

  // Not zero if one of the written elements is not finite.
  L4_DEVICE uint32_t write(const Matrix& w, int64_t row, int64_t first, int group) const {
    uint32_t bad = 0;
    if constexpr (wide) {
#pragma unroll
      for (int p = 0; p < pieces; p++) {
        int64_t col = first + Layout::column(group, p * elements);
        if (col < w.cols) {
          *reinterpret_cast<uint4*>(address(w, row, col)) = bits[p];
          bad |= not_finite_bits<type>(bits[p]);
        }
      }
    } else {
      float value[8];
      get(value);
#pragma unroll
      for (int e = 0; e < 8; e++) {
        int64_t col = first + Layout::column(group, e);
        if (col < w.cols) {
          w.set(row, col, value[e]);
          bad |= not_finite(value[e]);
        }
      }
    }
    return bad;
  }

 private:
  L4_DEVICE static char* address(const Matrix& w, int64_t row, int64_t col) {
    return static_cast<char*>(w.data) + (row * w.row_stride + col) * Type<type>::bytes;
  }
};

}  // namespace lora4j
