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

  using V = __m512;

  static V zero() { return _mm512_setzero_ps(); }
  static V broadcast(float value) { return _mm512_set1_ps(value); }
  static V fma(V a, V b, V c) { return _mm512_fmadd_ps(a, b, c); }

  template <DType T>
  static V load(const void* data, int64_t index) {
    if constexpr (T == DType::f32) {
      return _mm512_loadu_ps(static_cast<const float*>(data) + index);
    } else {
      __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(static_cast<const uint16_t*>(data) + index));
      if constexpr (T == DType::f16) return _mm512_cvtph_ps(half);
      return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
    }
  }

  template <DType T>
  static void store(void* data, int64_t index, V v) {
    __mmask16 nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
    if constexpr (T == DType::f32) {
      V quiet = _mm512_castsi512_ps(_mm512_set1_epi32(0x7fc00000));
      _mm512_storeu_ps(static_cast<float*>(data) + index, _mm512_mask_mov_ps(v, nan, quiet));
    } else {
      __m256i half;
      if constexpr (T == DType::f16) {
        V quiet = _mm512_castsi512_ps(_mm512_set1_epi32(0x7fc00000));
        half = _mm512_cvtps_ph(_mm512_mask_mov_ps(v, nan, quiet), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
      } else {
        __m512i bits = _mm512_castps_si512(v);
        __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
        bits = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
        bits = _mm512_mask_mov_epi32(_mm512_srli_epi32(bits, 16), nan, _mm512_set1_epi32(0x7fc0));
        half = _mm512_cvtepi32_epi16(bits);
      }
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(static_cast<uint16_t*>(data) + index), half);
    }
  }

  static void keep(float* out, V v) { _mm512_storeu_ps(out, v); }
};

}  // namespace
}  // namespace lora4j
