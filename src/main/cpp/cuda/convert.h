// Conversions with the instructions of the device, to the bits of element.h: 16 bits widen exactly, a pair of float32
// is rounded to nearest even, and a NaN that is kept becomes the canonical one of its type.
#pragma once

#include "cuda/device.h"

namespace lora4j {

template <DType type>
struct Type {
  static constexpr DType value = type;
  static constexpr int bytes = type == DType::f32 ? 4 : 2;
  static constexpr int in_16_bytes = 16 / bytes;
};

// Calls work with the Type of a run-time type.
template <typename Work>
L4_DEVICE void with_type(DType type, Work work) {
  if (type == DType::f32) return work(Type<DType::f32>());
  if (type == DType::bf16) return work(Type<DType::bf16>());
  work(Type<DType::f16>());
}

template <DType type>
L4_DEVICE float widen(uint16_t bits) {
  if constexpr (type == DType::bf16) return __uint_as_float(static_cast<uint32_t>(bits) << 16);
  return half_to_float(bits);
}

// Two 16-bit numbers in a word, the first in its low half.
template <DType type>
L4_DEVICE float2 widen_pair(uint32_t word) {
  if constexpr (type == DType::bf16) return {__uint_as_float(word << 16), __uint_as_float(word & 0xffff0000u)};
  return {half_to_float(static_cast<uint16_t>(word)), half_to_float(static_cast<uint16_t>(word >> 16))};
}

template <DType type>
L4_DEVICE uint32_t narrow_pair(float low, float high) {
  uint32_t word = round_pair<type>(low, high);
  constexpr uint32_t quiet = type == DType::bf16 ? 0x7fc0u : 0x7e00u;
  if (low != low) word = (word & 0xffff0000u) | quiet;
  if (high != high) word = (word & 0x0000ffffu) | quiet << 16;
  return word;
}

// The numbers of 16 bytes.
template <DType type>
L4_DEVICE void widen_all(uint4 bits, float (&out)[Type<type>::in_16_bytes]) {
  const uint32_t words[4] = {bits.x, bits.y, bits.z, bits.w};
#pragma unroll
  for (int i = 0; i < 4; i++) {
    if constexpr (type == DType::f32) {
      out[i] = __uint_as_float(words[i]);
    } else {
      float2 pair = widen_pair<type>(words[i]);
      out[2 * i] = pair.x;
      out[2 * i + 1] = pair.y;
    }
  }
}

template <DType type>
L4_DEVICE uint4 narrow_all(const float (&in)[Type<type>::in_16_bytes]) {
  uint32_t words[4];
#pragma unroll
  for (int i = 0; i < 4; i++) {
    if constexpr (type == DType::f32) {
      words[i] = __float_as_uint(canonical(in[i]));
    } else {
      words[i] = narrow_pair<type>(in[2 * i], in[2 * i + 1]);
    }
  }
  return {words[0], words[1], words[2], words[3]};
}

// Not zero if a number in a word is an infinity or a NaN: its exponent, all ones, carries into the sign.
template <DType type>
L4_DEVICE uint32_t not_finite_word(uint32_t word) {
  constexpr uint32_t exponent = type == DType::f32 ? 0x7f800000u : type == DType::bf16 ? 0x7f807f80u : 0x7c007c00u;
  constexpr uint32_t lowest = type == DType::f32 ? 0x00800000u : type == DType::bf16 ? 0x00800080u : 0x04000400u;
  constexpr uint32_t sign = type == DType::f32 ? 0x80000000u : 0x80008000u;
  return ((word & exponent) + lowest) & sign;
}

template <DType type>
L4_DEVICE uint32_t not_finite_bits(uint4 bits) {
  return not_finite_word<type>(bits.x) | not_finite_word<type>(bits.y) | not_finite_word<type>(bits.z) |
         not_finite_word<type>(bits.w);
}

}  // namespace lora4j
