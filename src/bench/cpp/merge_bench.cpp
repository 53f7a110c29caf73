// Times l4_merge and l4_low_rank_update on random bfloat16 matrices, beside a copy of the same bytes in the same run.
//   merge_bench [threads]
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <random>
#include <vector>

#include "core/element.h"
#include "lora4j/lora4j.h"

namespace {

constexpr l4_place cpu = {L4_CPU, 0, nullptr};

struct Values {
  std::vector<uint16_t> data;
  l4_matrix matrix;

  Values(int64_t rows, int64_t cols, float scale) : data(static_cast<size_t>(rows * cols)) {
    static std::minstd_rand engine(1);
    for (uint16_t& value : data) {
      value = lora4j::f32_to_bf16(scale * (static_cast<float>(engine()) / 1073741824.0f - 1));
    }
    matrix = {data.data(), rows, cols, cols, 1, L4_BF16};
  }
};

double milliseconds(const std::function<void()>& run) {
  std::vector<double> times;
  for (int i = 0; i < 12; i++) {
    auto start = std::chrono::steady_clock::now();
    run();
    std::chrono::duration<double, std::milli> time = std::chrono::steady_clock::now() - start;
    if (i > 0) times.push_back(time.count());
  }
  std::sort(times.begin(), times.end());
  return times[times.size() / 2];
}

void check(int code) {
  if (code) {
    std::fprintf(stderr, "%s\n", l4_last_error());
    std::exit(1);
  }
}

void merge(int64_t out, int64_t in, int64_t rank) {
  Values w(out, in, 1), copy(out, in, 1), a(rank, in, 1), b(out, rank, 1);
  l4_low_rank update = {a.matrix, b.matrix, 1e-4};
  double merged = milliseconds([&] { check(l4_merge(&w.matrix, &update, 1, &cpu)); });
  double copied = milliseconds([&] { std::copy(w.data.begin(), w.data.end(), copy.data.begin()); });
  std::printf("merge        %5ld x %5ld  rank %3ld              %8.3f ms  copy on one thread %8.3f ms\n", out, in, rank,
              merged, copied);
}

void low_rank(int64_t width, int64_t rank, int64_t batch, int64_t adapters) {
  Values y(batch, width, 1), x(batch, width, 1);
  std::vector<Values> factors;
  std::vector<l4_low_rank> list;
  factors.reserve(static_cast<size_t>(2 * adapters));
  for (int64_t i = 0; i < adapters; i++) {
    const l4_matrix a = factors.emplace_back(rank, width, 1.0f).matrix;
    const l4_matrix b = factors.emplace_back(width, rank, 1.0f).matrix;
    list.push_back({a, b, 1e-4});
  }
  std::vector<int32_t> rows;
  for (int64_t t = 0; t < batch; t++) rows.push_back(static_cast<int32_t>(t % adapters));
  double time = milliseconds(
      [&] { check(l4_low_rank_update(&y.matrix, &x.matrix, rows.data(), list.data(), adapters, &cpu)); });
  std::printf("low_rank     %5ld x %5ld  rank %3ld  rows %3ld of %3ld adapters  %8.3f ms\n", width, width, rank, batch,
              adapters, time);
}

}  // namespace

int main(int argc, char** argv) {
  check(l4_set_threads(argc > 1 ? std::atoi(argv[1]) : 0));
  for (const char* isa : {"plain", "avx2", "avx512"}) {
    if (l4_set_cpu_isa(isa)) continue;
    std::printf("%s\n", isa);
    for (int64_t rank : {8, 16, 64}) merge(4096, 4096, rank);
    low_rank(4096, 16, 1, 1);
    low_rank(4096, 16, 64, 8);
    low_rank(4096, 16, 64, 64);
  }
  return 0;
}
