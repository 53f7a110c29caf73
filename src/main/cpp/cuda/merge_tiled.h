// The plain and the tiled merge. Plain: the definition, one thread to an element. Tiled: a block owns 64 x 128 elements of
// w, whose sums stay in registers, 4 x 8 to a thread. The factors come through shared memory in slices of 16 ranks,
// converted to float32 once for the whole tile, so w is read and written once.
#pragma once

#include "core/definition.h"
#include "cuda/convert.h"
#include "cuda/cuda.h"

namespace lora4j {

struct MergeArgs {
  Matrix w;
  Matrix from;  // w itself unless the kernel is a checked one
  int32_t* not_finite;
  int64_t count;
  LowRank updates[most_cuda_updates];
};
static_assert(sizeof(MergeArgs) <= 4096, "kernel parameters end at 4 KiB");

constexpr int tiled_threads = 256;
constexpr int64_t most_blocks = 1 << 16;

__global__ void __launch_bounds__(tiled_threads) merge_plain(const __grid_constant__ MergeArgs args) {
  int64_t total = args.w.rows * args.w.cols;
  int64_t step = static_cast<int64_t>(gridDim.x) * tiled_threads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * tiled_threads + threadIdx.x; i < total; i += step) {
    int64_t row = i / args.w.cols;
    int64_t col = i % args.w.cols;
    if (args.count > 0) {
      args.w.set(row, col, merged_element(args.from, args.updates, args.count, row, col));
    } else {
      args.w.copy(row, col, args.from);
    }
    if (args.not_finite && not_finite(args.w.at(row, col))) *args.not_finite = 1;
  }
}

constexpr int tile_rows = 64;
constexpr int tile_cols = 128;
constexpr int slice = 16;
constexpr int thread_rows = 4;
constexpr int thread_cols = 8;

// Eight neighbours of w. Wide: 16 or 32 bytes at once, which the launch has made sure are aligned.
template <DType type, bool wide>
L4_DEVICE void load_row(const Matrix& w, int64_t row, int64_t col, float (&value)[thread_cols]) {
  if constexpr (!wide) {
#pragma unroll
    for (int j = 0; j < thread_cols; j++) {
      int64_t at = row * w.row_stride + (col + j) * w.col_stride;
      value[j] = col + j < w.cols ? load(w.data, at, type) : 0.0f;
    }
  } else if constexpr (type == DType::f32) {
    const float4* from = reinterpret_cast<const float4*>(static_cast<const float*>(w.data) + row * w.row_stride + col);
    float4 low = from[0], high = from[1];
    value[0] = low.x, value[1] = low.y, value[2] = low.z, value[3] = low.w;
    value[4] = high.x, value[5] = high.y, value[6] = high.z, value[7] = high.w;
  } else {
    uint4 bits = *reinterpret_cast<const uint4*>(static_cast<const uint16_t*>(w.data) + row * w.row_stride + col);
    const uint32_t words[4] = {bits.x, bits.y, bits.z, bits.w};
#pragma unroll
    for (int j = 0; j < thread_cols; j++) {
      uint16_t half = static_cast<uint16_t>(words[j / 2] >> (16 * (j % 2)));
      value[j] = type == DType::bf16 ? bf16_to_f32(half) : f16_to_f32(half);
    }
  }
}

// Not zero if a written element is not finite.
template <DType type, bool wide>
L4_DEVICE uint32_t store_row(const Matrix& w, int64_t row, int64_t col, const float (&value)[thread_cols]) {
  uint32_t bad = 0;
  if constexpr (!wide) {
#pragma unroll
    for (int j = 0; j < thread_cols; j++) {
      if (col + j >= w.cols) continue;
      int64_t at = row * w.row_stride + (col + j) * w.col_stride;
      store(w.data, at, type, value[j]);
      bad |= not_finite(load(w.data, at, type));
    }
  } else if constexpr (type == DType::f32) {
    float4* to = reinterpret_cast<float4*>(static_cast<float*>(w.data) + row * w.row_stride + col);
    to[0] = {canonical(value[0]), canonical(value[1]), canonical(value[2]), canonical(value[3])};
    to[1] = {canonical(value[4]), canonical(value[5]), canonical(value[6]), canonical(value[7])};
#pragma unroll
    for (int j = 0; j < thread_cols; j++) bad |= not_finite(value[j]);
  } else {
    uint32_t words[4];
#pragma unroll
    for (int j = 0; j < thread_cols; j += 2) {
      uint32_t low = type == DType::bf16 ? f32_to_bf16(value[j]) : f32_to_f16(value[j]);
      uint32_t high = type == DType::bf16 ? f32_to_bf16(value[j + 1]) : f32_to_f16(value[j + 1]);
      words[j / 2] = low | high << 16;
      bad |= not_finite_word<type>(words[j / 2]);
    }
    uint4* to = reinterpret_cast<uint4*>(static_cast<uint16_t*>(w.data) + row * w.row_stride + col);
    *to = {words[0], words[1], words[2], words[3]};
  }
  return bad;
}

// checked: from another matrix, or with a report of what is not finite.
template <DType type, bool wide, bool checked>
__global__ void __launch_bounds__(tiled_threads) merge_tiled(const __grid_constant__ MergeArgs args) {
  __shared__ float a[slice][tile_cols];
  __shared__ float b[slice][tile_rows];
  const Matrix& w = args.w;
  const Matrix& from = checked ? args.from : args.w;
  uint32_t bad = 0;
  int64_t col_tiles = (w.cols + tile_cols - 1) / tile_cols;
  int64_t tiles = col_tiles * ((w.rows + tile_rows - 1) / tile_rows);
  int thread_col = static_cast<int>(threadIdx.x) % (tile_cols / thread_cols) * thread_cols;
  int thread_row = static_cast<int>(threadIdx.x) / (tile_cols / thread_cols) * thread_rows;
  for (int64_t tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
    int64_t first_row = tile / col_tiles * tile_rows;
    int64_t first_col = tile % col_tiles * tile_cols;
    int64_t col = first_col + thread_col;
    float value[thread_rows][thread_cols];
#pragma unroll
    for (int i = 0; i < thread_rows; i++) {
      int64_t row = first_row + thread_row + i;
      if (row < w.rows && col < w.cols) load_row<type, wide>(from, row, col, value[i]);
    }
    for (int64_t u = 0; u < args.count; u++) {
      const LowRank& update = args.updates[u];
      float sum[thread_rows][thread_cols] = {};
      for (int64_t first = 0; first < update.rank(); first += slice) {
        int ranks = static_cast<int>(update.rank() - first < slice ? update.rank() - first : slice);
        __syncthreads();
        // Neighbouring threads read neighbours: along a row of a, and down b's rank where that is the contiguous side.
        for (int i = static_cast<int>(threadIdx.x); i < ranks * tile_cols; i += tiled_threads) {
          int64_t at = first_col + i % tile_cols;
          a[i / tile_cols][i % tile_cols] = at < w.cols ? update.a.at(first + i / tile_cols, at) : 0.0f;
        }
        for (int i = static_cast<int>(threadIdx.x); i < ranks * tile_rows; i += tiled_threads) {
          int k = update.b.col_stride == 1 ? i % ranks : i / tile_rows;
          int r = update.b.col_stride == 1 ? i / ranks : i % tile_rows;
          b[k][r] = first_row + r < w.rows ? update.b.at(first_row + r, first + k) : 0.0f;
        }
        __syncthreads();
#pragma unroll 4
        for (int k = 0; k < ranks; k++) {
          float left[thread_rows], right[thread_cols];
#pragma unroll
          for (int i = 0; i < thread_rows; i++) left[i] = b[k][thread_row + i];
#pragma unroll
          for (int j = 0; j < thread_cols; j++) right[j] = a[k][thread_col + j];
#pragma unroll
          for (int i = 0; i < thread_rows; i++) {
#pragma unroll
            for (int j = 0; j < thread_cols; j++) sum[i][j] = fmaf(left[i], right[j], sum[i][j]);
          }
        }
      }
#pragma unroll
      for (int i = 0; i < thread_rows; i++) {
#pragma unroll
        for (int j = 0; j < thread_cols; j++) value[i][j] = fmaf(update.scale, sum[i][j], value[i][j]);
      }
    }
#pragma unroll
    for (int i = 0; i < thread_rows; i++) {
      int64_t row = first_row + thread_row + i;
      if (row < w.rows && col < w.cols) bad |= store_row<type, wide>(w, row, col, value[i]);
    }
  }
  if (checked && bad && args.not_finite) *args.not_finite = 1;
}

}  // namespace lora4j
