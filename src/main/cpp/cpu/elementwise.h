// Loops over elements, for one instruction set: elementwise.cpp is compiled once for each.
#pragma once

#include <cstdint>

#include "core/combine.h"

namespace lora4j {

struct Elementwise {
  // count elements from data[index] on, `stride` apart, to and from float32.
  void (*widen)(const void* data, int64_t index, int64_t stride, DType type, int64_t count, float* out);
  void (*narrow)(const float* values, int64_t count, void* data, int64_t index, int64_t stride, DType type);

  // Adds each element to the bin of the upper 16 bits of its key.
  void (*count_keys)(const float* values, int64_t count, uint32_t* bins);

  // Zeroes elements whose key is below `from`; marks those below `below` as undecided.
  void (*keep_largest)(float* values, int64_t count, uint32_t from, uint32_t below, uint8_t* undecided);

  // Random pruning of elements first, first + 1, ...; first is a multiple of 4.
  void (*keep_random)(float* values, int64_t first, int64_t count, const TaskTensor& tensor);

  // Combines `count` elements of tensors that lie `stride` apart in values.
  void (*combine)(const float* values, int64_t stride, int64_t count, const TaskTensor* tensors, int64_t tensor_count,
                  Election election, float* out);

  // out[i * out_stride + j] = x_i . y_j in double, as core/norms.h defines it, for rows of n elements.
  void (*double_dots)(const float* x, int64_t x_stride, int64_t x_rows, const float* y, int64_t y_stride, int64_t y_rows,
                      int64_t n, double* out, int64_t out_stride);
};

const Elementwise* plain_elementwise();
const Elementwise* avx2_elementwise();
const Elementwise* avx512_elementwise();

// The one that belongs to kernels().
const Elementwise& elementwise();

}  // namespace lora4j
