// Loops over elements for the instruction set that L4_ISA names; the compiler makes vectors of them. Only names with
// internal linkage and the one function at the end, as in kernels.cpp.
#include "cpu/elementwise.h"

#include <cstring>

#include "core/norms.h"

#if L4_ISA == 512
#include "cpu/simd_avx512.h"
#define L4_ELEMENTWISE avx512_elementwise
#define L4_DOT_ROWS 4
#define L4_DOT_COLS 4
#elif L4_ISA == 2
#include "cpu/simd_avx2.h"
#define L4_ELEMENTWISE avx2_elementwise
#define L4_DOT_ROWS 2
#define L4_DOT_COLS 2
#else
#include "cpu/simd_plain.h"
#define L4_ELEMENTWISE plain_elementwise
#define L4_DOT_ROWS 2
#define L4_DOT_COLS 1
#endif

namespace lora4j {
namespace {

constexpr int width = Simd::width;
constexpr int64_t piece = 256;  // elements whose intermediate results stay in the first-level cache

int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

template <DType T>
void widen_as(const void* data, int64_t index, int64_t stride, int64_t count, float* out) {
  int64_t i = 0;
  if (stride == 1) {
    for (; i + width <= count; i += width) Simd::keep(out + i, Simd::load<T>(data, index + i));
  }
  for (; i < count; i++) out[i] = load(data, index + i * stride, T);
}

void widen(const void* data, int64_t index, int64_t stride, DType type, int64_t count, float* out) {
  switch (type) {
    case DType::f32: widen_as<DType::f32>(data, index, stride, count, out); break;
    case DType::bf16: widen_as<DType::bf16>(data, index, stride, count, out); break;
    case DType::f16: widen_as<DType::f16>(data, index, stride, count, out); break;
    case DType::f8: break;  // only where a merge stores
  }
}

template <DType T>
void narrow_as(const float* values, int64_t count, void* data, int64_t index, int64_t stride) {
  int64_t i = 0;
  if (stride == 1) {
    for (; i + 2 * width <= count; i += 2 * width) {
      Simd::V first = Simd::load<DType::f32>(values, i), second = Simd::load<DType::f32>(values, i + width);
      if (Simd::interleaved<T>) Simd::deinterleave(first, second);
      Simd::store_pair<T>(data, index + i, first, second);
    }
  }
  for (; i < count; i++) store(data, index + i * stride, T, values[i]);
}

void narrow(const float* values, int64_t count, void* data, int64_t index, int64_t stride, DType type) {
  switch (type) {
    case DType::f32: narrow_as<DType::f32>(values, count, data, index, stride); break;
    case DType::bf16: narrow_as<DType::bf16>(values, count, data, index, stride); break;
    case DType::f16: narrow_as<DType::f16>(values, count, data, index, stride); break;
    case DType::f8: break;  // only where a merge stores
  }
}

void count_keys(const float* values, int64_t count, uint32_t* bins) {
  for (int64_t i = 0; i < count; i++) bins[magnitude_key(values[i]) >> low_bits]++;
}

void keep_largest(float* values, int64_t count, uint32_t from, uint32_t below, uint8_t* undecided) {
  constexpr int64_t step = 64;
  for (int64_t first = 0; first < count; first += step) {
    int64_t n = least(step, count - first);
    float* value = values + first;
    uint32_t open = 0;
    for (int64_t i = 0; i < n; i++) {
      uint32_t key = magnitude_key(value[i]);
      value[i] = float_of(key < from ? 0u : bits_of(value[i]));
      open += key >= from && key < below ? 1u : 0u;
    }
    for (int64_t i = 0; i < n && open > 0; i++) {
      uint32_t key = magnitude_key(value[i]);
      if (key >= from && key < below) {
        undecided[first + i] = 1;
        open--;
      }
    }
  }
}

void keep_random(float* values, int64_t first, int64_t count, const TaskTensor& tensor) {
  if (tensor.keep_below > UINT32_MAX) return;  // all of them, and density 1 divides by 1
  auto below = static_cast<uint32_t>(tensor.keep_below);
  alignas(64) uint32_t words[4][piece / 4];
  for (int64_t start = 0; start < count; start += piece) {
    uint64_t block = static_cast<uint64_t>(first + start) / 4;
    for (int64_t i = 0; i < piece / 4; i++) {
      PhiloxBlock random = philox(tensor.seed, tensor.stream, block + static_cast<uint64_t>(i));
      for (int j = 0; j < 4; j++) words[j][i] = random.word[j];
    }
    int64_t n = least(piece, count - start);
    for (int64_t i = 0; i < n; i++) {
      float value = values[start + i];
      values[start + i] = words[i % 4][i / 4] < below ? value / tensor.divisor : 0.0f;
    }
  }
}

// As combined_element of core/combine.h, a loop over elements for each step.
template <Election election>
void combine_piece(const float* values, int64_t stride, int64_t n, const TaskTensor* tensors, int64_t tensor_count,
                   float* out) {
  float votes[piece] = {};
  float number[piece] = {};
  if constexpr (election != Election::none) {
    for (int64_t t = 0; t < tensor_count; t++) {
      const float* x = values + t * stride;
      for (int64_t i = 0; i < n; i++) votes[i] = votes[i] + vote(election, x[i]);
    }
  }
  for (int64_t i = 0; i < n; i++) out[i] = 0.0f;
  for (int64_t t = 0; t < tensor_count; t++) {
    const float* x = values + t * stride;
    float weight = tensors[t].weight;
    for (int64_t i = 0; i < n; i++) {
      float term = weight * x[i];
      if constexpr (election != Election::none) {
        float agreed = agrees(x[i], votes[i]);
        term = term * agreed;
        number[i] = number[i] + agreed;
      }
      out[i] = out[i] + term;
    }
  }
  if constexpr (election != Election::none) {
    for (int64_t i = 0; i < n; i++) out[i] = out[i] / (number[i] > 1.0f ? number[i] : 1.0f);
  }
}

void combine(const float* values, int64_t stride, int64_t count, const TaskTensor* tensors, int64_t tensor_count,
             Election election, float* out) {
  for (int64_t first = 0; first < count; first += piece) {
    int64_t n = least(piece, count - first);
    const float* at = values + first;
    switch (election) {
      case Election::none: combine_piece<Election::none>(at, stride, n, tensors, tensor_count, out + first); break;
      case Election::total: combine_piece<Election::total>(at, stride, n, tensors, tensor_count, out + first); break;
      case Election::frequency:
        combine_piece<Election::frequency>(at, stride, n, tensors, tensor_count, out + first);
        break;
    }
  }
}

typedef float Floats __attribute__((vector_size(double_lanes * sizeof(float))));
typedef double Doubles __attribute__((vector_size(double_lanes * sizeof(double))));

// Several dot products at once; each has its own chains.
template <int rows, int cols>
void double_tile(const float* const* x, const float* const* y, int64_t n, double* out, int64_t out_stride) {
  Doubles sum[rows][cols] = {};
  for (int64_t k = 0; k < n; k += double_lanes) {
    Floats part[rows + cols] = {};
    auto bytes = static_cast<size_t>(least(double_lanes, n - k)) * sizeof(float);
    if (bytes == sizeof(Floats)) {
      for (int i = 0; i < rows; i++) std::memcpy(&part[i], x[i] + k, sizeof(Floats));
      for (int j = 0; j < cols; j++) std::memcpy(&part[rows + j], y[j] + k, sizeof(Floats));
    } else {  // padded with zeros, which change no sum
      for (int i = 0; i < rows; i++) std::memcpy(&part[i], x[i] + k, bytes);
      for (int j = 0; j < cols; j++) std::memcpy(&part[rows + j], y[j] + k, bytes);
    }
    Doubles right[cols];
    for (int j = 0; j < cols; j++) right[j] = __builtin_convertvector(part[rows + j], Doubles);
    for (int i = 0; i < rows; i++) {
      Doubles left = __builtin_convertvector(part[i], Doubles);
      for (int j = 0; j < cols; j++) sum[i][j] = sum[i][j] + left * right[j];
    }
  }
  for (int i = 0; i < rows; i++) {
    for (int j = 0; j < cols; j++) {
      double lane[double_lanes];
      std::memcpy(lane, &sum[i][j], sizeof lane);
      out[i * out_stride + j] = double_tree(lane);
    }
  }
}

template <int rows>
void double_rows(const float* const* x, const float* y, int64_t y_stride, int64_t y_rows, int64_t n, double* out,
                 int64_t out_stride) {
  int64_t j = 0;
  for (; j + L4_DOT_COLS <= y_rows; j += L4_DOT_COLS) {
    const float* of[L4_DOT_COLS];
    for (int c = 0; c < L4_DOT_COLS; c++) of[c] = y + (j + c) * y_stride;
    double_tile<rows, L4_DOT_COLS>(x, of, n, out + j, out_stride);
  }
  for (; j < y_rows; j++) {
    const float* of = y + j * y_stride;
    double_tile<rows, 1>(x, &of, n, out + j, out_stride);
  }
}

void double_dots(const float* x, int64_t x_stride, int64_t x_rows, const float* y, int64_t y_stride, int64_t y_rows,
                 int64_t n, double* out, int64_t out_stride) {
  int64_t i = 0;
  for (; i + L4_DOT_ROWS <= x_rows; i += L4_DOT_ROWS) {
    const float* of[L4_DOT_ROWS];
    for (int r = 0; r < L4_DOT_ROWS; r++) of[r] = x + (i + r) * x_stride;
    double_rows<L4_DOT_ROWS>(of, y, y_stride, y_rows, n, out + i * out_stride, out_stride);
  }
  for (; i < x_rows; i++) {
    const float* of = x + i * x_stride;
    double_rows<1>(&of, y, y_stride, y_rows, n, out + i * out_stride, out_stride);
  }
}

const Elementwise table = {widen, narrow, count_keys, keep_largest, keep_random, combine, double_dots};

}  // namespace

const Elementwise* L4_ELEMENTWISE() { return &table; }

}  // namespace lora4j
