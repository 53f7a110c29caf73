// Part of kernels.cpp: the second product of lowRankUpdate for one or two rows, without packing B, whose columns must be
// contiguous for each rank. Included where the tiles of an instruction set are known.
#pragma once

namespace lora4j {
namespace {

// The columns behind the last whole tile.
template <int m, DType TB, DType TY>
void row_rest(const RowBlock& block, int64_t from) {
  for (int i = 0; i < m; i++) {
    int64_t row = block.row_numbers[i] * block.y.row_stride;
    for (int64_t j = from; j < block.col + block.col_count; j++) {
      float sum = 0.0f;
      for (int64_t k = 0; k < block.b.cols; k++) {
        sum = __builtin_fmaf(load(block.b.data, k * block.b.col_stride + j, TB), block.v[k * tile_rows + i], sum);
      }
      store(block.y.data, row + j, TY, __builtin_fmaf(block.scale, sum, load(block.y.data, row + j, TY)));
    }
  }
}

template <int m, DType TB, DType TY>
void row_block(const RowBlock& block) {
  V scale = Simd::broadcast(block.scale);
  int64_t end = block.col + block.col_count;
  int64_t j = block.col;
  for (; j + tile_cols <= end; j += tile_cols) {
    V sum[m][vectors];
    L4_UNROLL for (int i = 0; i < m; i++) {
      L4_UNROLL for (int n = 0; n < vectors; n++) sum[i][n] = Simd::zero();
    }
    for (int64_t k = 0; k < block.b.cols; k++) {
      V b[vectors];
      L4_UNROLL for (int n = 0; n < vectors; n++) b[n] = Simd::load<TB>(block.b.data, k * block.b.col_stride + j + n * width);
      L4_UNROLL for (int i = 0; i < m; i++) {
        V v = Simd::broadcast(block.v[k * tile_rows + i]);
        L4_UNROLL for (int n = 0; n < vectors; n++) sum[i][n] = Simd::fma(b[n], v, sum[i][n]);
      }
    }
    L4_UNROLL for (int i = 0; i < m; i++) {
      int64_t at = block.row_numbers[i] * block.y.row_stride + j;
      L4_UNROLL for (int n = 0; n < vectors; n += 2) {
        if (Simd::interleaved<TY>) Simd::deinterleave(sum[i][n], sum[i][n + 1]);
        V first, second;
        Simd::load_pair<TY>(block.y.data, at + n * width, first, second);
        first = Simd::fma(scale, sum[i][n], first);
        second = Simd::fma(scale, sum[i][n + 1], second);
        Simd::store_pair<TY>(block.y.data, at + n * width, first, second);
      }
    }
  }
  if (j < end) row_rest<m, TB, TY>(block, j);
}

template <DType TB, DType TY>
void row_counted(const RowBlock& block) {
  if (block.row_count == 1) {
    row_block<1, TB, TY>(block);
  } else {
    row_block<2, TB, TY>(block);
  }
}

template <DType TB>
void row_typed(const RowBlock& block) {
  switch (block.y.type) {
    case DType::f32: row_counted<TB, DType::f32>(block); break;
    case DType::bf16: row_counted<TB, DType::bf16>(block); break;
    case DType::f16: row_counted<TB, DType::f16>(block); break;
    case DType::f8: break;  // only where a merge stores
  }
}

void rows(const RowBlock& block) {
  switch (block.b.type) {
    case DType::f32: row_typed<DType::f32>(block); break;
    case DType::bf16: row_typed<DType::bf16>(block); break;
    case DType::f16: row_typed<DType::f16>(block); break;
    case DType::f8: break;  // only where a merge stores
  }
}

}  // namespace
}  // namespace lora4j
