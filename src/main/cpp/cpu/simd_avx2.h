// AVX2 with FMA and F16C: eight floats.
#pragma once

#include <immintrin.h>

#include "core/element.h"

namespace lora4j {
namespace {

struct Simd {
  static constexpr int width = 8;
  static constexpr int tile_vectors = 2;
  static constexpr int dot_ranks = 3;
  static constexpr int dot_rows = 2;

  using V = __m256;

  static V zero() { return _mm256_setzero_ps(); }
  static V broadcast(float value) { return _mm256_set1_ps(value); }
  static V fma(V a, V b, V c) { return _mm256_fmadd_ps(a, b, c); }

  template <DType T>
  static V load(const void* data, int64_t index) {
    if constexpr (T == DType::f32) {
      return _mm256_loadu_ps(static_cast<const float*>(data) + index);
    } else {
      const void* p = static_cast<const uint16_t*>(data) + index;
      __m128i half = _mm_loadu_si128(static_cast<const __m128i*>(p));
      if constexpr (T == DType::f16) return _mm256_cvtph_ps(half);
      return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
    }
  }

  template <DType T>
  static void store(void* data, int64_t index, V v) {
    V nan = _mm256_cmp_ps(v, v, _CMP_UNORD_Q);
    if constexpr (T == DType::f32) {
      V quiet = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fc00000));
      _mm256_storeu_ps(static_cast<float*>(data) + index, _mm256_blendv_ps(v, quiet, nan));
    } else {
      __m128i half;
      if constexpr (T == DType::f16) {
        V quiet = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fc00000));
        half = _mm256_cvtps_ph(_mm256_blendv_ps(v, quiet, nan), _MM_FROUND_TO_NEAREST_INT);
      } else {
        __m256i bits = _mm256_castps_si256(v);
        __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
        bits = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
        bits = _mm256_srli_epi32(bits, 16);
        bits = _mm256_blendv_epi8(bits, _mm256_set1_epi32(0x7fc0), _mm256_castps_si256(nan));
        half = _mm_packus_epi32(_mm256_castsi256_si128(bits), _mm256_extracti128_si256(bits, 1));
      }
      void* p = static_cast<uint16_t*>(data) + index;
      _mm_storeu_si128(static_cast<__m128i*>(p), half);
    }
  }

  static void keep(float* out, V v) { _mm256_storeu_ps(out, v); }
};

}  // namespace
}  // namespace lora4j
