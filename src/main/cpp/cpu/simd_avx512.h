// AVX-512 F, BW, DQ and VL: sixteen floats. Rounding to bfloat16 is done on the bits: the vcvtneps2bf16 instruction
// flushes subnormals.
#pragma once

#include <immintrin.h>

#include "core/element.h"

namespace lora4j {
namespace {

struct Simd {
  static constexpr int width = 16;
  static constexpr int tile_vectors = 4;
  static constexpr int dot_ranks = 4;
  static constexpr int dot_rows = 4;

  // Whether a pair of vectors takes the elements with even numbers first and those with odd ones after them: both halves
  // of a 32-bit word are a bfloat16.
  template <DType T>
  static constexpr bool interleaved = T == DType::bf16;

  using V = __m512;

  static V zero() { return _mm512_setzero_ps(); }
  static V broadcast(float value) { return _mm512_set1_ps(value); }
  static V fma(V a, V b, V c) { return _mm512_fmadd_ps(a, b, c); }

  template <DType T>
  static V load(const void* data, int64_t index) {
    if constexpr (T == DType::f32) {
      return _mm512_loadu_ps(static_cast<const float*>(data) + index);
    } else {
      return widen<T>(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(static_cast<const uint16_t*>(data) + index)));
    }
  }

  // The first `count` elements, zeros after them; reads nothing else.
  template <DType T>
  static V load_part(const void* data, int64_t index, int64_t count) {
    __mmask16 mask = static_cast<__mmask16>((1u << count) - 1u);
    if constexpr (T == DType::f32) {
      return _mm512_maskz_loadu_ps(mask, static_cast<const float*>(data) + index);
    } else {
      return widen<T>(_mm256_maskz_loadu_epi16(mask, static_cast<const uint16_t*>(data) + index));
    }
  }

  template <DType T>
  static void load_pair(const void* data, int64_t index, V& first, V& second) {
    if constexpr (T == DType::bf16) {
      __m512i words = _mm512_loadu_si512(static_cast<const uint16_t*>(data) + index);
      first = _mm512_castsi512_ps(_mm512_slli_epi32(words, 16));
      second = _mm512_castsi512_ps(_mm512_and_si512(words, _mm512_set1_epi32(static_cast<int>(0xffff0000u))));
    } else {
      first = load<T>(data, index);
      second = load<T>(data, index + width);
    }
  }

  template <DType T>
  static void store_pair(void* data, int64_t index, V first, V second) {
    if (__builtin_expect(_mm512_cmp_ps_mask(first, second, _CMP_UNORD_Q) != 0, 0)) {
      first = canonical(first);
      second = canonical(second);
    }
    if constexpr (T == DType::f32) {
      _mm512_storeu_ps(static_cast<float*>(data) + index, first);
      _mm512_storeu_ps(static_cast<float*>(data) + index + width, second);
    } else if constexpr (T == DType::f16) {
      __m256i* to = reinterpret_cast<__m256i*>(static_cast<uint16_t*>(data) + index);
      _mm256_storeu_si256(to, _mm512_cvtps_ph(first, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
      _mm256_storeu_si256(to + 1, _mm512_cvtps_ph(second, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
    } else {
      __m512i even = _mm512_srli_epi32(round_to_bf16(first), 16);
      __m512i words = _mm512_mask_blend_epi16(0xaaaaaaaau, even, round_to_bf16(second));
      _mm512_storeu_si512(static_cast<uint16_t*>(data) + index, words);
    }
  }

  static void keep(float* out, V v) { _mm512_storeu_ps(out, v); }

  // Of 32 elements in order: the even ones, the odd ones.
  static void deinterleave(V& first, V& second) {
    __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    V odd = _mm512_permutex2var_ps(first, _mm512_add_epi32(even, _mm512_set1_epi32(1)), second);
    first = _mm512_permutex2var_ps(first, even, second);
    second = odd;
  }

  static void transpose(V (&m)[width]) {
    V t[width];
    for (int i = 0; i < 16; i += 4) {
      V a = _mm512_unpacklo_ps(m[i], m[i + 1]), b = _mm512_unpackhi_ps(m[i], m[i + 1]);
      V c = _mm512_unpacklo_ps(m[i + 2], m[i + 3]), d = _mm512_unpackhi_ps(m[i + 2], m[i + 3]);
      t[i] = _mm512_shuffle_ps(a, c, 0x44);
      t[i + 1] = _mm512_shuffle_ps(a, c, 0xee);
      t[i + 2] = _mm512_shuffle_ps(b, d, 0x44);
      t[i + 3] = _mm512_shuffle_ps(b, d, 0xee);
    }
    // t[4 q + j], lane 4 g + e: row 4 q + e, column 4 g + j.
    for (int j = 0; j < 4; j++) {
      V a = _mm512_shuffle_f32x4(t[j], t[4 + j], 0x88), b = _mm512_shuffle_f32x4(t[j], t[4 + j], 0xdd);
      V c = _mm512_shuffle_f32x4(t[8 + j], t[12 + j], 0x88), d = _mm512_shuffle_f32x4(t[8 + j], t[12 + j], 0xdd);
      m[j] = _mm512_shuffle_f32x4(a, c, 0x88);
      m[4 + j] = _mm512_shuffle_f32x4(b, d, 0x88);
      m[8 + j] = _mm512_shuffle_f32x4(a, c, 0xdd);
      m[12 + j] = _mm512_shuffle_f32x4(b, d, 0xdd);
    }
  }

 private:
  template <DType T>
  static V widen(__m256i half) {
    if constexpr (T == DType::f16) return _mm512_cvtph_ps(half);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
  }

  static V canonical(V v) {
    return _mm512_mask_mov_ps(v, _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q), _mm512_castsi512_ps(_mm512_set1_epi32(0x7fc00000)));
  }

  // The bits of the rounded number in the high half.
  static __m512i round_to_bf16(V v) {
    __m512i bits = _mm512_castps_si512(v);
    __mmask16 odd = _mm512_test_epi32_mask(bits, _mm512_set1_epi32(0x10000));
    bits = _mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff));
    return _mm512_mask_add_epi32(bits, odd, bits, _mm512_set1_epi32(1));
  }
};

}  // namespace
}  // namespace lora4j
