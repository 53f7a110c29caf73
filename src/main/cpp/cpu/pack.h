// Packing factors as float32 panels, for the instruction set whose Simd is in scope.
#pragma once

#include "cpu/kernels.h"

namespace lora4j {
namespace {

constexpr int width = Simd::width;
constexpr int vectors = Simd::tile_vectors;
constexpr int tile_cols = width * vectors;
static_assert(vectors % 2 == 0, "tiles are made of pairs of vectors");

// Where in a tile the column is that a packed row of a right panel holds at `place`.
template <bool interleaved>
int64_t column_at(int64_t place) {
  if (!interleaved) return place;
  int64_t in_pair = place % (2 * width);
  return place - in_pair + in_pair % width * 2 + in_pair / width;
}

template <DType T>
void pack_left_as(const Matrix& b, int64_t row, int64_t count, float* out) {
  for (int64_t first = 0; first < count; first += tile_rows) {
    int64_t rows = count - first < tile_rows ? count - first : tile_rows;
    for (int64_t m = 0; m < rows; m++) {
      int64_t index = (row + first + m) * b.row_stride;
      for (int64_t k = 0; k < b.cols; k++) out[k * tile_rows + m] = load(b.data, index + k * b.col_stride, T);
    }
    out += b.cols * tile_rows;
  }
}

// A whole tile whose columns are contiguous: rows as they are, or in pairs of even and odd columns.
template <DType T, bool interleaved>
void pack_rows(const Matrix& a, int64_t index, float* out) {
  for (int64_t k = 0; k < a.rows; k++) {
    for (int n = 0; n < vectors; n += 2) {
      Simd::V first = Simd::load<T>(a.data, index + k * a.row_stride + n * width);
      Simd::V second = Simd::load<T>(a.data, index + k * a.row_stride + (n + 1) * width);
      if (interleaved) Simd::deinterleave(first, second);
      Simd::keep(out + k * tile_cols + n * width, first);
      Simd::keep(out + k * tile_cols + (n + 1) * width, second);
    }
  }
}

// A whole tile whose columns are rows in memory, such as a factor B seen from y: transposed in squares.
template <DType T, bool interleaved>
void pack_columns(const Matrix& a, int64_t index, float* out) {
  for (int n = 0; n < vectors; n++) {
    for (int64_t k = 0; k < a.rows; k += width) {
      int64_t ranks = a.rows - k < width ? a.rows - k : width;
      Simd::V square[width];
      for (int i = 0; i < width; i++) {
        int64_t at = index + column_at<interleaved>(n * width + i) * a.col_stride + k;
        square[i] = ranks == width ? Simd::load<T>(a.data, at) : Simd::load_part<T>(a.data, at, ranks);
      }
      Simd::transpose(square);
      if (ranks == width) {
        for (int i = 0; i < width; i++) Simd::keep(out + (k + i) * tile_cols + n * width, square[i]);
      } else {
        for (int i = 0; i < ranks; i++) Simd::keep(out + (k + i) * tile_cols + n * width, square[i]);
      }
    }
  }
}

template <DType T, bool interleaved>
void pack_right_as(const Matrix& a, int64_t col, int64_t count, float* out) {
  for (int64_t first = 0; first < count; first += tile_cols) {
    int64_t cols = count - first < tile_cols ? count - first : tile_cols;
    int64_t index = (col + first) * a.col_stride;
    if (a.col_stride == 1 && cols == tile_cols) {
      pack_rows<T, interleaved>(a, index, out);
    } else if (a.row_stride == 1 && cols == tile_cols) {
      pack_columns<T, interleaved>(a, index, out);
    } else {
      for (int64_t j = 0; j < tile_cols; j++) {
        int64_t column = column_at<interleaved>(j);
        for (int64_t k = 0; k < a.rows; k++) {
          bool inside = column < cols;
          out[k * tile_cols + j] = inside ? load(a.data, index + k * a.row_stride + column * a.col_stride, T) : 0.0f;
        }
      }
    }
    out += a.rows * tile_cols;
  }
}

template <DType T>
void pack_right_for(const Matrix& a, int64_t col, int64_t count, DType target, float* out) {
  if (target == DType::bf16) {
    pack_right_as<T, Simd::interleaved<DType::bf16>>(a, col, count, out);
  } else {
    pack_right_as<T, false>(a, col, count, out);
  }
}

}  // namespace
}  // namespace lora4j
