// Both operations for one element: the definition that lora4j.h gives, and the body of the CUDA kernels. The tests run
// it on the CPU and hold the CPU kernels to the same bits.
#pragma once

#include <cmath>

#include "core/params.h"

namespace lora4j {

constexpr int definition_lanes = 16;

// sum_k left[row, k] * right[k, col], k ascending.
L4_INLINE float chain(const Matrix& left, int64_t row, const Matrix& right, int64_t col) {
  float sum = 0.0f;
  for (int64_t k = 0; k < left.cols; k++) sum = fmaf(left.at(row, k), right.at(k, col), sum);
  return sum;
}

L4_INLINE float merged_element(const Matrix& w, const LowRank* updates, int64_t count, const RowFactors& factors, int64_t row,
                               int64_t col) {
  float value = w.at(row, col);
  for (int64_t u = 0; u < count; u++) value = fmaf(updates[u].scale, chain(updates[u].b, row, updates[u].a, col), value);
  return factors.apply(value, row, col);
}

// One of the 16 chains of a[rank, :] . x[row, :]: elements lane, lane + 16, ...; the last round is padded with zeros.
L4_INLINE float lane_sum(const Matrix& a, int64_t rank, const Matrix& x, int64_t row, int lane) {
  float sum = 0.0f;
  for (int64_t i = lane; i - lane < a.cols; i += definition_lanes) {
    bool inside = i < a.cols;
    sum = fmaf(inside ? a.at(rank, i) : 0.0f, inside ? x.at(row, i) : 0.0f, sum);
  }
  return sum;
}

// y + scale * sum_k b[col, k] * v[k], k ascending.
L4_INLINE float updated_element(float y, const LowRank& adapter, const float* v, int64_t col) {
  float sum = 0.0f;
  for (int64_t k = 0; k < adapter.rank(); k++) sum = fmaf(adapter.b.at(col, k), v[k], sum);
  return fmaf(adapter.scale, sum, y);
}

}  // namespace lora4j
