// l4_low_rank_backward: its arguments after checking, and its sums over rows as lora4j.h defines them. The products with
// rows are those of core/definition.h.
#pragma once

#include <cmath>

#include "core/params.h"

namespace lora4j {

// Rows whose terms form one chain.
constexpr int64_t gradient_chunk = 256;

struct Gradient {
  Matrix a;  // as the factors; without elements if not wanted
  Matrix b;
};

struct LowRankBackwardParams {
  Matrix dx;  // without elements if not wanted
  Matrix dy;
  Matrix x;
  Matrix h;  // without elements if to be computed
  const int32_t* rows;
  const LowRank* adapters;
  const Gradient* gradients;
  int64_t count;
};

// sum over n rows of left[t * stride] * input[rows[t], col], in order.
L4_INLINE float row_chain(const float* left, int64_t stride, const Matrix& input, const int32_t* rows, int64_t n,
                          int64_t col) {
  float sum = 0.0f;
  for (int64_t t = 0; t < n; t++) sum = fmaf(left[t * stride], input.at(rows[t], col), sum);
  return sum;
}

// One element of a factor's gradient from its start value: left has a row of `stride` products for each of the rows.
L4_INLINE float gradient_element(float value, float scale, const float* left, int64_t stride, const Matrix& input,
                                 const int32_t* rows, int64_t n, int64_t col) {
  for (int64_t first = 0; first < n; first += gradient_chunk) {
    int64_t count = n - first < gradient_chunk ? n - first : gradient_chunk;
    value = fmaf(scale, row_chain(left + first * stride, stride, input, rows + first, count, col), value);
  }
  return value;
}

}  // namespace lora4j
