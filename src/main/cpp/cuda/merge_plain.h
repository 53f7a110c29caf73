// The plain merge: the definition, one thread to an element.
#pragma once

#include "core/definition.h"
#include "cuda/cuda.h"
#include "cuda/device.h"

namespace lora4j {

struct MergeArgs {
  Matrix w;
  Matrix from;  // w itself unless the kernel is a checked one
  RowFactors factors;
  int32_t* not_finite;
  int64_t count;
  LowRank updates[most_cuda_updates];
};
static_assert(sizeof(MergeArgs) <= 4096, "kernel parameters end at 4 KiB");

constexpr int plain_threads = 256;
constexpr int64_t most_blocks = 1 << 16;

__global__ void __launch_bounds__(plain_threads) merge_plain(const __grid_constant__ MergeArgs args) {
  int64_t total = args.w.rows * args.w.cols;
  int64_t step = static_cast<int64_t>(gridDim.x) * plain_threads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * plain_threads + threadIdx.x; i < total; i += step) {
    int64_t row = i / args.w.cols;
    int64_t col = i % args.w.cols;
    if (args.count > 0) {
      args.w.set(row, col, merged_element(args.from, args.updates, args.count, args.factors, row, col));
    } else {
      args.w.copy(row, col, args.from);
    }
    if (args.not_finite && not_finite(args.w.at(row, col))) *args.not_finite = 1;
  }
}

}  // namespace lora4j
