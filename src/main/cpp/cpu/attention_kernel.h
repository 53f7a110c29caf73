// Attention of one token's query heads over the keys and values of its sequence, for the instruction set of the file that
// includes this. Every sum has an order that depends on the number of keys alone.
#pragma once

namespace lora4j {
namespace {

// Largest width of a head.
constexpr int64_t most_head = 512;

// Keys whose products with the queries are summed together.
constexpr int64_t key_block = 16;

// e^x for x <= 0, by one polynomial in float32 (after Cephes' expf, Moshier): the same bits on every CPU.
inline float exp_of(float x) {
  float clamped = x < -87.0f ? -87.0f : x;
  float n = (clamped * 1.44269504088896341f + 12582912.0f) - 12582912.0f;
  float r = __builtin_fmaf(n, -0.693359375f, clamped);
  r = __builtin_fmaf(n, 2.12194440e-4f, r);
  float p = 1.9875691500e-4f;
  p = __builtin_fmaf(p, r, 1.3981999507e-3f);
  p = __builtin_fmaf(p, r, 8.3334519073e-3f);
  p = __builtin_fmaf(p, r, 4.1665795894e-2f);
  p = __builtin_fmaf(p, r, 1.6666665459e-1f);
  p = __builtin_fmaf(p, r, 5.0000001201e-1f);
  p = __builtin_fmaf(p, r * r, r) + 1.0f;
  p *= float_of(static_cast<uint32_t>(static_cast<int32_t>(n) + 127) << 23);
  return x < -87.0f ? 0.0f : p;
}

// Products of one query with up to key_block keys.
template <DType T>
void key_products(const AttentionUnit& unit, const float* query, const int64_t* at, int64_t count, float* scores) {
  alignas(64) float lane[key_block][dot_lanes];
  int64_t whole = unit.head_dim / dot_lanes * dot_lanes;
  alignas(64) float tail[dot_lanes];
  for (int64_t j = 0; j < count; j++) {
    V sum[lane_vectors];
    L4_UNROLL for (int n = 0; n < lane_vectors; n++) sum[n] = Simd::zero();
    for (int64_t i = 0; i < whole; i += dot_lanes) {
      L4_UNROLL for (int n = 0; n < lane_vectors; n++) {
        sum[n] = Simd::fma(Simd::load<T>(unit.keys.data, at[j] + i + n * width),
                           Simd::load<DType::f32>(query, i + n * width), sum[n]);
      }
    }
    if (whole < unit.head_dim) {
      tail_of<T>(unit.keys.data, at[j] + whole, unit.head_dim - whole, tail);
      L4_UNROLL for (int n = 0; n < lane_vectors; n++) {
        sum[n] = Simd::fma(Simd::load<DType::f32>(tail, n * width), Simd::load<DType::f32>(query, whole + n * width),
                           sum[n]);
      }
    }
    L4_UNROLL for (int n = 0; n < lane_vectors; n++) Simd::keep(lane[j] + n * width, sum[n]);
  }
  for (int64_t half = dot_lanes / 2; half > 0; half /= 2) {
    for (int64_t j = 0; j < count; j++) {
      for (int64_t k = 0; k < half; k++) lane[j][k] += lane[j][k + half];
    }
  }
  for (int64_t j = 0; j < count; j++) scores[j] = lane[j][0];
}

// weights[j] = e^(scale (score_j - largest)) / sum.
void softmax(float* weights, int64_t count, float scale) {
  float largest = weights[0];
  for (int64_t j = 1; j < count; j++) largest = weights[j] > largest ? weights[j] : largest;
  for (int64_t j = 0; j < count; j++) weights[j] = exp_of((weights[j] - largest) * scale);
  alignas(64) float lane[dot_lanes] = {};
  int64_t j = 0;
  for (; j + dot_lanes <= count; j += dot_lanes) {
    for (int64_t k = 0; k < dot_lanes; k++) lane[k] += weights[j + k];
  }
  for (; j < count; j++) lane[j % dot_lanes] += weights[j];
  float inverse = 1.0f / tree_sum(lane);
  for (int64_t i = 0; i < count; i++) weights[i] *= inverse;
}

// out = sum over j of weights[j] value_j, as fma chains with j ascending.
template <DType T>
void weighted_values(const AttentionUnit& unit, const float* weights, const int64_t* at, int64_t index) {
  int64_t i = 0;
  for (; i + width * vectors <= unit.head_dim; i += width * vectors) {
    V sum[vectors];
    L4_UNROLL for (int n = 0; n < vectors; n++) sum[n] = Simd::zero();
    for (int64_t j = 0; j < unit.count; j++) {
      V weight = Simd::broadcast(weights[j]);
      L4_UNROLL for (int n = 0; n < vectors; n += 2) {
        V first, second;
        Simd::load_pair<T>(unit.values.data, at[j] + i + n * width, first, second);
        sum[n] = Simd::fma(weight, first, sum[n]);
        sum[n + 1] = Simd::fma(weight, second, sum[n + 1]);
      }
    }
    L4_UNROLL for (int n = 0; n < vectors; n += 2) {
      Simd::store_pair<T>(unit.out.data, index + i + n * width, sum[n], sum[n + 1]);
    }
  }
  for (; i < unit.head_dim; i++) {
    float sum = 0.0f;
    for (int64_t j = 0; j < unit.count; j++) {
      sum = __builtin_fmaf(weights[j], load(unit.values.data, at[j] + i, T), sum);
    }
    store(unit.out.data, index + i, T, sum);
  }
}

template <DType T>
void attend_as(const AttentionUnit& unit) {
  alignas(64) float query[most_head];
  auto* at = reinterpret_cast<int64_t*>(unit.scratch);
  float* weights = unit.scratch + 2 * unit.count;
  for (int64_t g = 0; g < unit.group; g++) {
    int64_t head = unit.kv_head * unit.group + g;
    int64_t padded = (unit.head_dim + dot_lanes - 1) / dot_lanes * dot_lanes;
    int64_t first = unit.token * unit.query.row_stride + head * unit.head_dim;
    for (int64_t i = 0; i < padded; i++) query[i] = i < unit.head_dim ? load(unit.query.data, first + i, T) : 0.0f;
    int64_t column = unit.kv_head * unit.head_dim;
    for (int64_t j = 0; j < unit.count; j++) {
      int64_t key = unit.first + j;
      int64_t slot = unit.pages[key / unit.page_tokens] * unit.page_tokens + key % unit.page_tokens;
      at[j] = slot * unit.keys.row_stride + column;
    }
    for (int64_t j = 0; j < unit.count; j += key_block) {
      key_products<T>(unit, query, at + j, min_of(key_block, unit.count - j), weights + j);
    }
    softmax(weights, unit.count, unit.scale);
    weighted_values<T>(unit, weights, at, unit.token * unit.out.row_stride + head * unit.head_dim);
  }
}

void attend(const AttentionUnit& unit) {
  switch (unit.query.type) {
    case DType::f32: attend_as<DType::f32>(unit); break;
    case DType::bf16: attend_as<DType::bf16>(unit); break;
    case DType::f16: attend_as<DType::f16>(unit); break;
    case DType::f8: break;  // only where a merge stores
  }
}

}  // namespace
}  // namespace lora4j
