// Part of kernels.cpp: the second product of lowRankUpdate for one or two rows, without packing B: with the outputs of a
// rank beside each other, or the ranks of an output. Included where the tiles of an instruction set are known.
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
        sum = __builtin_fmaf(load(block.b.data, k * block.b.col_stride + j * block.b.row_stride, TB), block.v[k * tile_rows + i], sum);
      }
      store(block.y.data, row + j, TY, __builtin_fmaf(block.scale, sum, load(block.y.data, row + j, TY)));
    }
  }
}

// y += scale * sum for two vectors of columns, which are in order.
template <int m, DType TY>
void add_to_rows(const RowBlock& block, int64_t j, V (&first)[m], V (&second)[m], V scale) {
  L4_UNROLL for (int i = 0; i < m; i++) {
    int64_t at = block.row_numbers[i] * block.y.row_stride + j;
    if (Simd::interleaved<TY>) Simd::deinterleave(first[i], second[i]);
    V low, high;
    Simd::load_pair<TY>(block.y.data, at, low, high);
    low = Simd::fma(scale, first[i], low);
    high = Simd::fma(scale, second[i], high);
    Simd::store_pair<TY>(block.y.data, at, low, high);
  }
}

// sum[i] = B v[i] for a vector of outputs from j on: squares of B are turned in registers.
template <int m, DType TB>
void turned_sums(const RowBlock& block, int64_t j, V (&sum)[m]) {
  L4_UNROLL for (int i = 0; i < m; i++) sum[i] = Simd::zero();
  for (int64_t k = 0; k < block.b.cols; k += width) {
    int64_t count = block.b.cols - k < width ? block.b.cols - k : width;
    V b[width];
    int64_t at = j * block.b.row_stride + k;
    if (count == width) {
      L4_UNROLL for (int n = 0; n < width; n++) b[n] = Simd::load<TB>(block.b.data, at + n * block.b.row_stride);
    } else {
      L4_UNROLL for (int n = 0; n < width; n++) b[n] = Simd::load_part<TB>(block.b.data, at + n * block.b.row_stride, count);
    }
    Simd::transpose(b);
    for (int64_t n = 0; n < count; n++) {
      L4_UNROLL for (int i = 0; i < m; i++) {
        sum[i] = Simd::fma(b[n], Simd::broadcast(block.v[(k + n) * tile_rows + i]), sum[i]);
      }
    }
  }
}

template <int m, DType TB, DType TY>
void turned_row_block(const RowBlock& block) {
  V scale = Simd::broadcast(block.scale);
  int64_t end = block.col + block.col_count;
  int64_t j = block.col;
  for (; j + 2 * width <= end; j += 2 * width) {
    V first[m], second[m];
    turned_sums<m, TB>(block, j, first);
    turned_sums<m, TB>(block, j + width, second);
    add_to_rows<m, TY>(block, j, first, second, scale);
  }
  if (j < end) row_rest<m, TB, TY>(block, j);
}

template <int m, DType TB, DType TY>
void row_block(const RowBlock& block) {
  if (block.b.row_stride != 1) return turned_row_block<m, TB, TY>(block);
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
    L4_UNROLL for (int n = 0; n < vectors; n += 2) {
      V first[m], second[m];
      L4_UNROLL for (int i = 0; i < m; i++) {
        first[i] = sum[i][n];
        second[i] = sum[i][n + 1];
      }
      add_to_rows<m, TY>(block, j + n * width, first, second, scale);
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
