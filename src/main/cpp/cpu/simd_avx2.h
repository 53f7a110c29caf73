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

  // As for AVX-512: bfloat16 goes in even and odd elements.
  template <DType T>
  static constexpr bool interleaved = T == DType::bf16;

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
  static V load_part(const void* data, int64_t index, int64_t count) {
    alignas(32) float part[width] = {};
    for (int64_t i = 0; i < count; i++) part[i] = lora4j::load(data, index + i, T);
    return _mm256_load_ps(part);
  }

  template <DType T>
  static void load_pair(const void* data, int64_t index, V& first, V& second) {
    if constexpr (T == DType::bf16) {
      const void* p = static_cast<const uint16_t*>(data) + index;
      __m256i words = _mm256_loadu_si256(static_cast<const __m256i*>(p));
      first = _mm256_castsi256_ps(_mm256_slli_epi32(words, 16));
      second = _mm256_castsi256_ps(_mm256_and_si256(words, _mm256_set1_epi32(static_cast<int>(0xffff0000u))));
    } else {
      first = load<T>(data, index);
      second = load<T>(data, index + width);
    }
  }

  template <DType T>
  static void store_pair(void* data, int64_t index, V first, V second) {
    if (__builtin_expect(_mm256_movemask_ps(_mm256_cmp_ps(first, second, _CMP_UNORD_Q)) != 0, 0)) {
      first = canonical(first);
      second = canonical(second);
    }
    if constexpr (T == DType::f32) {
      _mm256_storeu_ps(static_cast<float*>(data) + index, first);
      _mm256_storeu_ps(static_cast<float*>(data) + index + width, second);
    } else if constexpr (T == DType::f16) {
      __m128i* to = reinterpret_cast<__m128i*>(static_cast<uint16_t*>(data) + index);
      _mm_storeu_si128(to, _mm256_cvtps_ph(first, _MM_FROUND_TO_NEAREST_INT));
      _mm_storeu_si128(to + 1, _mm256_cvtps_ph(second, _MM_FROUND_TO_NEAREST_INT));
    } else {
      void* to = static_cast<uint16_t*>(data) + index;
      __m256i even = _mm256_srli_epi32(round_to_bf16(first), 16);
      _mm256_storeu_si256(static_cast<__m256i*>(to), _mm256_blend_epi16(even, round_to_bf16(second), 0xaa));
    }
  }

  static void keep(float* out, V v) { _mm256_storeu_ps(out, v); }

  static void deinterleave(V& first, V& second) {
    __m256d even = _mm256_castps_pd(_mm256_shuffle_ps(first, second, 0x88));
    __m256d odd = _mm256_castps_pd(_mm256_shuffle_ps(first, second, 0xdd));
    first = _mm256_castpd_ps(_mm256_permute4x64_pd(even, 0xd8));
    second = _mm256_castpd_ps(_mm256_permute4x64_pd(odd, 0xd8));
  }

  static void transpose(V (&m)[width]) {
    V t[width];
    for (int i = 0; i < 8; i += 4) {
      V a = _mm256_unpacklo_ps(m[i], m[i + 1]), b = _mm256_unpackhi_ps(m[i], m[i + 1]);
      V c = _mm256_unpacklo_ps(m[i + 2], m[i + 3]), d = _mm256_unpackhi_ps(m[i + 2], m[i + 3]);
      t[i] = _mm256_shuffle_ps(a, c, 0x44);
      t[i + 1] = _mm256_shuffle_ps(a, c, 0xee);
      t[i + 2] = _mm256_shuffle_ps(b, d, 0x44);
      t[i + 3] = _mm256_shuffle_ps(b, d, 0xee);
    }
    for (int j = 0; j < 4; j++) {
      m[j] = _mm256_permute2f128_ps(t[j], t[4 + j], 0x20);
      m[4 + j] = _mm256_permute2f128_ps(t[j], t[4 + j], 0x31);
    }
  }

 private:
  static V canonical(V v) {
    V quiet = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fc00000));
    return _mm256_blendv_ps(v, quiet, _mm256_cmp_ps(v, v, _CMP_UNORD_Q));
  }

  // The bits of the rounded number in the high half.
  static __m256i round_to_bf16(V v) {
    __m256i bits = _mm256_castps_si256(v);
    __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    return _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
  }
};

}  // namespace
}  // namespace lora4j
