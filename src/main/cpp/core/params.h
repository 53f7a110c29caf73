// The operations' arguments after checking: plain structs, strides in elements.
#pragma once

#include <cstdint>

#include "core/element.h"

namespace lora4j {

struct Matrix {
  void* data;
  int64_t rows;
  int64_t cols;
  int64_t row_stride;
  int64_t col_stride;
  DType type;

  L4_HD float at(int64_t i, int64_t j) const { return load(data, i * row_stride + j * col_stride, type); }
  L4_HD void set(int64_t i, int64_t j, float value) const { store(data, i * row_stride + j * col_stride, type, value); }
  // The same bits, of a matrix of the same type.
  L4_HD void copy(int64_t i, int64_t j, const Matrix& from) const {
    int64_t to = i * row_stride + j * col_stride, at = i * from.row_stride + j * from.col_stride;
    if (type == DType::f32) {
      static_cast<uint32_t*>(data)[to] = static_cast<const uint32_t*>(from.data)[at];
    } else if (type == DType::f8) {
      static_cast<uint8_t*>(data)[to] = static_cast<const uint8_t*>(from.data)[at];
    } else {
      static_cast<uint16_t*>(data)[to] = static_cast<const uint16_t*>(from.data)[at];
    }
  }
  L4_HD Matrix transposed() const { return {data, cols, rows, col_stride, row_stride, type}; }
};

struct LowRank {
  Matrix a;  // (rank, in)
  Matrix b;  // (out, rank)
  float scale;

  L4_HD int64_t rank() const { return a.rows; }
};

// What multiplies the rows of a merged matrix, or its columns if that is turned; nothing if data is null.
struct RowFactors {
  const float* data;
  bool across;

  L4_HD float apply(float value, int64_t row, int64_t col) const { return data ? value * data[across ? col : row] : value; }
  L4_HD RowFactors turned() const { return {data, !across}; }
};

struct MergeParams {
  Matrix w;
  Matrix from;  // w itself, or apart from it
  const LowRank* updates;
  int64_t count;
  RowFactors factors;
  int32_t* not_finite;  // may be null
  bool fast;            // on CUDA: with tensor cores, not to the bit of the definition
};

struct LowRankUpdateParams {
  Matrix y;
  Matrix x;
  const int32_t* rows;
  const LowRank* adapters;
  int64_t count;
};

struct Place {
  int device;
  int ordinal;
  void* stream;
};

}  // namespace lora4j
