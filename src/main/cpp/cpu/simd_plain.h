// Portable vectors: four floats, one correctly rounded fma each.
#pragma once

#include "core/element.h"

namespace lora4j {
namespace {

struct Simd {
  static constexpr int width = 4;
  static constexpr int tile_vectors = 2;
  static constexpr int dot_ranks = 2;
  static constexpr int dot_rows = 1;

  template <DType T>
  static constexpr bool interleaved = false;

  struct V {
    float lane[width];
  };

  static V zero() { return V{}; }

  static V broadcast(float value) {
    V v;
    for (int i = 0; i < width; i++) v.lane[i] = value;
    return v;
  }

  static V fma(V a, V b, V c) {
    for (int i = 0; i < width; i++) c.lane[i] = __builtin_fmaf(a.lane[i], b.lane[i], c.lane[i]);
    return c;
  }

  template <DType T>
  static V load(const void* data, int64_t index) {
    return load_part<T>(data, index, width);
  }

  template <DType T>
  static V load_part(const void* data, int64_t index, int64_t count) {
    V v{};
    for (int i = 0; i < count; i++) v.lane[i] = lora4j::load(data, index + i, T);
    return v;
  }

  template <DType T>
  static void load_pair(const void* data, int64_t index, V& first, V& second) {
    first = load<T>(data, index);
    second = load<T>(data, index + width);
  }

  template <DType T>
  static void store_pair(void* data, int64_t index, V first, V second) {
    for (int i = 0; i < width; i++) {
      lora4j::store(data, index + i, T, first.lane[i]);
      lora4j::store(data, index + width + i, T, second.lane[i]);
    }
  }

  static void keep(float* out, V v) {
    for (int i = 0; i < width; i++) out[i] = v.lane[i];
  }

  static void deinterleave(V&, V&) {}

  static void transpose(V (&m)[width]) {
    V t[width];
    for (int i = 0; i < width; i++) {
      for (int j = 0; j < width; j++) t[j].lane[i] = m[i].lane[j];
    }
    for (int i = 0; i < width; i++) m[i] = t[i];
  }
};

}  // namespace
}  // namespace lora4j
