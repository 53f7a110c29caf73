// l4_gram and l4_row_norms for one element, as lora4j.h defines them.
#pragma once

#include <cmath>

#include "core/params.h"

namespace lora4j {

constexpr int double_lanes = 8;

struct GramParams {
  double* g;  // (x.rows, y.rows)
  Matrix x;
  Matrix y;
};

struct RowNormsParams {
  Matrix norms;
  Matrix w;
  LowRank update;
};

// One of the 8 chains of x[i] . y[j]: elements lane, lane + 8, ...
L4_INLINE double double_lane(const Matrix& x, int64_t i, const Matrix& y, int64_t j, int lane) {
  double sum = 0;
  for (int64_t k = lane; k < x.cols; k += double_lanes) {
    sum = sum + static_cast<double>(x.at(i, k)) * static_cast<double>(y.at(j, k));
  }
  return sum;
}

L4_INLINE double double_tree(double* lane) {
  for (int half = double_lanes / 2; half > 0; half /= 2) {
    for (int l = 0; l < half; l++) lane[l] = lane[l] + lane[l + half];
  }
  return lane[0];
}

L4_INLINE double double_dot(const Matrix& x, int64_t i, const Matrix& y, int64_t j) {
  double lane[double_lanes];
  for (int l = 0; l < double_lanes; l++) lane[l] = double_lane(x, i, y, j, l);
  return double_tree(lane);
}

// sum_k b[row, k] column[k * stride].
L4_INLINE double factor_sum(const Matrix& b, int64_t row, const double* column, int64_t stride) {
  double sum = 0;
  for (int64_t k = 0; k < b.cols; k++) sum = sum + static_cast<double>(b.at(row, k)) * column[k * stride];
  return sum;
}

// The norm from |w|^2, b . (a w) and b (a a^T) b^T.
L4_INLINE float norm_of(double square, double cross, double quadratic, float scale) {
  double s = static_cast<double>(scale);
  double sum = square + 2 * s * cross + s * s * quadratic;
  return static_cast<float>(sum < 0 ? 0 : sqrt(sum));
}

}  // namespace lora4j
