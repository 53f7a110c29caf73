// l4_dequantize for one element, as lora4j.h defines it.
#pragma once

#include "core/params.h"

namespace lora4j {

struct Quantized {
  const void* packed;
  int64_t bits;
  int64_t rows;
  int64_t cols;
  int64_t block_size;
  const float* scales;
  const uint8_t* scale_codes;
  const float* scale_map;
  int64_t scale_block;
  float offset;
  float values[16];
};

struct DequantizeParams {
  Matrix w;
  Quantized weight;
  int64_t first_row;
};

// One over 127 as bitsandbytes writes it.
constexpr float int8_step = 7.874015718698502e-3f;

L4_INLINE float block_scale(const Quantized& q, int64_t block) {
  if (!q.scale_codes) return q.scales[block];
  float product = q.scale_map[q.scale_codes[block]] * q.scales[block / q.scale_block];
  return product + q.offset;
}

// values: those of the weight, wherever they are quick to read.
L4_INLINE float dequantized_element(const Quantized& q, const float* values, int64_t row, int64_t col) {
  int64_t e = row * q.cols + col;
  if (q.bits == 8) {
    float product = static_cast<float>(static_cast<const int8_t*>(q.packed)[e]) * q.scales[row];
    return product * int8_step;
  }
  uint8_t byte = static_cast<const uint8_t*>(q.packed)[e / 2];
  return values[e % 2 ? byte & 15 : byte >> 4] * block_scale(q, e / q.block_size);
}

}  // namespace lora4j
