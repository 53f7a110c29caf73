// A test is a program: CHECK stops it at the first failure, saying where and why. Also seeded matrices and the error
// bounds the tests share.
#pragma once

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include "core/definition.h"
#include "lora4j/lora4j.h"

#define CHECK(condition, ...)                                              \
  do {                                                                     \
    if (!(condition)) {                                                    \
      std::fprintf(stderr, "%s:%d: %s: ", __FILE__, __LINE__, #condition); \
      std::fprintf(stderr, __VA_ARGS__);                                   \
      std::fprintf(stderr, "\nlast error: %s\n", l4_last_error());         \
      std::exit(1);                                                        \
    }                                                                      \
  } while (0)

namespace test {

using lora4j::DType;
using lora4j::Matrix;

constexpr double unit = 0x1p-24;  // of float32
constexpr l4_place cpu = {L4_CPU, 0, nullptr};

inline double half_ulp(DType type) {
  return type == DType::f32 ? unit : type == DType::bf16 ? 0x1p-8 : type == DType::f16 ? 0x1p-11 : 0x1p-4;
}
inline double smallest(DType type) { return type == DType::f16 ? 0x1p-25 : type == DType::f8 ? 0x1p-10 : 0x1p-126; }

// What n float32 operations may add up to, for terms of that total magnitude, after one rounding to the type.
inline double bound(double n, double magnitude, double value, DType type) {
  double sums = n * unit / (1 - n * unit) * magnitude;
  return sums + half_ulp(type) * (std::abs(value) + sums) + smallest(type);
}

enum Layout { contiguous, transposed, rows_apart, columns_apart };

// A matrix in exactly as much memory as it needs, so that AddressSanitizer sees each step outside.
struct Buffer {
  std::vector<unsigned char> bytes;
  l4_matrix matrix{};

  Matrix view() {
    return {bytes.data(), matrix.rows, matrix.cols, matrix.row_stride, matrix.col_stride, static_cast<DType>(matrix.dtype)};
  }
  const l4_matrix* get() {
    matrix.data = bytes.data();
    return &matrix;
  }
};

class Random {
 public:
  explicit Random(unsigned seed) : engine_(seed) {}

  int64_t below(int64_t n) { return static_cast<int64_t>(engine_() % static_cast<uint64_t>(n)); }
  int64_t pick(const std::vector<int64_t>& from) { return from[static_cast<size_t>(below(static_cast<int64_t>(from.size())))]; }
  DType type() { return static_cast<DType>(below(3)); }
  DType stored() { return static_cast<DType>(below(4)); }
  Layout layout() { return static_cast<Layout>(below(4)); }
  double scale() { return (below(2) ? 1 : -1) * (0.25 + static_cast<double>(below(1000)) / 500); }

  Buffer matrix(int64_t rows, int64_t cols, DType type, Layout layout) {
    int64_t row = layout == transposed ? 1 : layout == columns_apart ? 3 * cols + 1 : layout == rows_apart ? cols + 5 : cols;
    int64_t col = layout == transposed ? rows : layout == columns_apart ? 3 : 1;
    Buffer buffer;
    int64_t reach = rows == 0 || cols == 0 ? 0 : (rows - 1) * row + (cols - 1) * col + 1;
    buffer.bytes.resize(static_cast<size_t>(reach * lora4j::size_of(type)));
    std::normal_distribution<float> normal;
    for (int64_t i = 0; i < reach; i++) lora4j::store(buffer.bytes.data(), i, type, normal(engine_));
    buffer.matrix = {nullptr, rows, cols, row, col, static_cast<int64_t>(type)};
    return buffer;
  }

  // A number for each row, as they multiply a merged matrix; none in some cases.
  std::vector<float> factors(int64_t rows) {
    std::vector<float> numbers;
    if (below(2)) {
      std::uniform_real_distribution<float> near_one(0.5f, 1.5f);
      for (int64_t i = 0; i < rows; i++) numbers.push_back(near_one(engine_));
    }
    return numbers;
  }

  Buffer matrix(int64_t rows, int64_t cols) { return matrix(rows, cols, type(), layout()); }

 private:
  std::mt19937 engine_;
};

// Low-rank updates with the memory they refer to.
struct Updates {
  std::vector<Buffer> buffers;
  std::vector<l4_low_rank> list;
  std::vector<lora4j::LowRank> views;

  void add(Random& random, int64_t rank, int64_t in, int64_t out) {
    add(random, random.matrix(rank, in), random.matrix(out, rank));
  }
  void add(Random& random, int64_t rank, int64_t in, int64_t out, Layout layout) {
    add(random, random.matrix(rank, in, random.type(), layout), random.matrix(out, rank, random.type(), layout));
  }
  void add(Random& random, Buffer a, Buffer b) {
    buffers.push_back(std::move(a));
    buffers.push_back(std::move(b));
    double scale = random.scale();
    size_t n = buffers.size();
    list.push_back({*buffers[n - 2].get(), *buffers[n - 1].get(), scale});
    views.push_back({buffers[n - 2].view(), buffers[n - 1].view(), static_cast<float>(scale)});
  }
  int64_t count() const { return static_cast<int64_t>(list.size()); }
};

inline std::vector<float> values(Buffer& buffer) {
  Matrix view = buffer.view();
  std::vector<float> out;
  for (int64_t i = 0; i < view.rows; i++) {
    for (int64_t j = 0; j < view.cols; j++) out.push_back(view.at(i, j));
  }
  return out;
}

// The instruction set the test program was started for.
inline void use_instruction_set(int argc, char** argv) {
  if (argc < 2) return;
  if (l4_set_cpu_isa(argv[1]) == L4_UNSUPPORTED) {
    std::printf("not run: %s\n", l4_last_error());
    std::exit(77);
  }
  CHECK(std::strcmp(l4_cpu_isa(), argv[1]) == 0, "%s", l4_cpu_isa());
}

}  // namespace test
