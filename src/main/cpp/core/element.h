// Element arithmetic, the same on CPU and CUDA: conversions, and the definition of both operations for one element.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__CUDACC__)
#define L4_HD __host__ __device__
#else
#define L4_HD
#endif

// Internal linkage: files compiled for different instruction sets must not share one copy.
#define L4_INLINE static inline L4_HD

namespace lora4j {

// f8 is e4m3 as in float8_e4m3fn: no infinities, one NaN of either sign. Only a merge stores it.
enum class DType : int { f32 = 0, bf16 = 1, f16 = 2, f8 = 3 };

L4_INLINE int64_t size_of(DType type) { return type == DType::f32 ? 4 : type == DType::f8 ? 1 : 2; }

L4_INLINE uint32_t bits_of(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}

L4_INLINE float float_of(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

L4_INLINE float bf16_to_f32(uint16_t bits) { return float_of(static_cast<uint32_t>(bits) << 16); }

L4_INLINE uint16_t f32_to_bf16(float value) {
  uint32_t bits = bits_of(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fc0;
  return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

L4_INLINE float f16_to_f32(uint16_t half) {
  uint32_t sign = static_cast<uint32_t>(half & 0x8000u) << 16;
  uint32_t rest = half & 0x7fffu;
  if (rest >= 0x7c00u) return float_of(sign | 0x7f800000u | ((rest & 0x3ffu) << 13));
  if (rest >= 0x0400u) return float_of(sign | ((rest << 13) + 0x38000000u));
  float magnitude = static_cast<float>(rest) * 5.9604644775390625e-8f;  // 2^-24, exact
  return float_of(sign | bits_of(magnitude));
}

L4_INLINE uint16_t f32_to_f16(float value) {
  uint32_t bits = bits_of(value);
  uint32_t sign = (bits >> 16) & 0x8000u;
  uint32_t rest = bits & 0x7fffffffu;
  if (rest > 0x7f800000u) return 0x7e00;
  if (rest >= 0x477ff000u) return static_cast<uint16_t>(sign | 0x7c00u);  // 65520 and above round to infinity
  if (rest >= 0x38800000u) {
    uint32_t rounded = rest - 0x38000000u + 0xfffu + ((rest >> 13) & 1u);
    return static_cast<uint16_t>(sign | (rounded >> 13));
  }
  if (rest < 0x33000000u) return static_cast<uint16_t>(sign);  // below 2^-25
  uint32_t shift = 126u - (rest >> 23);                         // to a multiple of 2^-24
  uint32_t mantissa = (rest & 0x7fffffu) | 0x800000u;
  uint32_t quotient = mantissa >> shift;
  uint32_t remainder = mantissa & ((1u << shift) - 1u);
  uint32_t half = 1u << (shift - 1u);
  if (remainder > half || (remainder == half && (quotient & 1u))) quotient++;
  return static_cast<uint16_t>(sign | quotient);
}

L4_INLINE float f8_to_f32(uint8_t byte) {
  uint32_t sign = static_cast<uint32_t>(byte & 0x80u) << 24;
  uint32_t rest = byte & 0x7fu;
  if (rest == 0x7fu) return float_of(sign | 0x7fc00000u);
  if (rest >= 0x08u) return float_of(sign | ((rest << 20) + 0x3c000000u));
  float magnitude = static_cast<float>(rest) * 0.001953125f;  // 2^-9, exact
  return float_of(sign | bits_of(magnitude));
}

// What rounds to more than 448 becomes NaN, as LibTorch converts.
L4_INLINE uint8_t f32_to_f8(float value) {
  uint32_t bits = bits_of(value);
  uint32_t sign = (bits >> 24) & 0x80u;
  uint32_t rest = bits & 0x7fffffffu;
  if (rest > 0x7f800000u) return 0x7f;
  if (rest > 0x43e80000u) return static_cast<uint8_t>(sign | 0x7fu);  // above 464, half way to 480
  if (rest >= 0x3c800000u) {
    uint32_t rounded = rest - 0x3c000000u + 0x7ffffu + ((rest >> 20) & 1u);
    return static_cast<uint8_t>(sign | (rounded >> 20));
  }
  if (rest < 0x3a800000u) return static_cast<uint8_t>(sign);  // below 2^-10
  uint32_t shift = 141u - (rest >> 23);                        // to a multiple of 2^-9
  uint32_t mantissa = (rest & 0x7fffffu) | 0x800000u;
  uint32_t quotient = mantissa >> shift;
  uint32_t remainder = mantissa & ((1u << shift) - 1u);
  uint32_t half = 1u << (shift - 1u);
  if (remainder > half || (remainder == half && (quotient & 1u))) quotient++;
  return static_cast<uint8_t>(sign | quotient);
}

L4_INLINE float canonical(float value) { return value == value ? value : float_of(0x7fc00000u); }

L4_INLINE bool not_finite(float value) { return (bits_of(value) & 0x7f800000u) == 0x7f800000u; }

L4_INLINE float load(const void* data, int64_t index, DType type) {
  if (type == DType::f32) return static_cast<const float*>(data)[index];
  if (type == DType::f8) return f8_to_f32(static_cast<const uint8_t*>(data)[index]);
  uint16_t bits = static_cast<const uint16_t*>(data)[index];
  return type == DType::bf16 ? bf16_to_f32(bits) : f16_to_f32(bits);
}

L4_INLINE void store(void* data, int64_t index, DType type, float value) {
  if (type == DType::f32) {
    static_cast<float*>(data)[index] = canonical(value);
  } else if (type == DType::f8) {
    static_cast<uint8_t*>(data)[index] = f32_to_f8(value);
  } else {
    static_cast<uint16_t*>(data)[index] = type == DType::bf16 ? f32_to_bf16(value) : f32_to_f16(value);
  }
}

}  // namespace lora4j
