// w = round(w + sum_i s_i b_i a_i), one thread per element in a grid-stride loop, neighbours along the contiguous side
// of w. The updates travel by value in the kernel's parameters. The plain variant: it reads the factors through the
// caches and is bound by them, not by w.
#include "core/definition.h"
#include "cuda/cuda.h"
#include "cuda/launch.h"

namespace lora4j {
namespace {

struct MergeArgs {
  Matrix w;
  int64_t count;
  LowRank updates[most_cuda_updates];
};
static_assert(sizeof(MergeArgs) <= 4096, "kernel parameters end at 4 KiB");

constexpr int block_threads = 256;
constexpr int64_t most_blocks = 1 << 16;

__global__ void __launch_bounds__(block_threads) merge_kernel(const MergeArgs args) {
  int64_t total = args.w.rows * args.w.cols;
  int64_t step = static_cast<int64_t>(gridDim.x) * block_threads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * block_threads + threadIdx.x; i < total; i += step) {
    bool by_row = args.w.col_stride <= args.w.row_stride;
    int64_t row = by_row ? i / args.w.cols : i % args.w.rows;
    int64_t col = by_row ? i % args.w.cols : i / args.w.rows;
    args.w.set(row, col, merged_element(args.w, args.updates, args.count, row, col));
  }
}

}  // namespace

int merge_cuda(const MergeParams& params, const Place& place) {
  DeviceScope device(place.ordinal);
  if (device.error()) return device.error();
  MergeArgs args = {};
  args.w = params.w;
  args.count = params.count;
  for (int64_t u = 0; u < params.count; u++) args.updates[u] = params.updates[u];
  int64_t blocks = (params.w.rows * params.w.cols + block_threads - 1) / block_threads;
  if (blocks > most_blocks) blocks = most_blocks;
  merge_kernel<<<static_cast<unsigned>(blocks), block_threads, 0, static_cast<cudaStream_t>(place.stream)>>>(args);
  return cudaGetLastError();
}

const char* cuda_error_name(int error) { return cudaGetErrorString(static_cast<cudaError_t>(error)); }

}  // namespace lora4j
