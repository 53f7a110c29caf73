// y[t] += s b (a x[t]) for the rows of one adapter, one block per row: half-warps compute the products a x[t] into
// shared memory, then threads run over the outputs. Adapter and row numbers travel by value in the kernel's parameters,
// one launch per adapter and 512 rows. The plain variant: latency-bound, and it reads the factors once per row.
#include "core/definition.h"
#include "cuda/cuda.h"
#include "cuda/launch.h"

namespace lora4j {
namespace {

constexpr int block_threads = 256;
constexpr int most_rows = 512;

struct UpdateArgs {
  Matrix y;
  Matrix x;
  LowRank adapter;
  int32_t count;
  int32_t rows[most_rows];
};
static_assert(sizeof(UpdateArgs) <= 4096, "kernel parameters end at 4 KiB");

__global__ void __launch_bounds__(block_threads) update_kernel(const UpdateArgs args) {
  extern __shared__ float v[];
  int64_t row = args.rows[blockIdx.x];
  int lane = threadIdx.x % definition_lanes;
  int64_t rank = args.adapter.rank();
  int64_t groups = block_threads / definition_lanes;
  // Both halves of a warp run equally often, so that all its threads meet in the shuffles.
  for (int64_t first = 0; first < rank; first += groups) {
    int64_t k = first + threadIdx.x / definition_lanes;
    float sum = k < rank ? lane_sum(args.adapter.a, k, args.x, row, lane) : 0.0f;
    for (int half = definition_lanes / 2; half > 0; half /= 2) {
      sum += __shfl_down_sync(0xffffffffu, sum, half, definition_lanes);
    }
    if (lane == 0 && k < rank) v[k] = sum;
  }
  __syncthreads();
  for (int64_t col = threadIdx.x; col < args.y.cols; col += block_threads) {
    args.y.set(row, col, updated_element(args.y.at(row, col), args.adapter, v, col));
  }
}

}  // namespace

int low_rank_update_cuda(const LowRankUpdateParams& params, const Place& place) {
  DeviceScope device(place.ordinal);
  if (device.error()) return device.error();
  UpdateArgs args = {};
  args.y = params.y;
  args.x = params.x;
  for (int64_t a = 0; a < params.count; a++) {
    args.adapter = params.adapters[a];
    args.count = 0;
    for (int64_t t = 0; t < params.y.rows; t++) {
      if (params.rows[t] == a) args.rows[args.count++] = static_cast<int32_t>(t);
      if (args.count == most_rows || (t == params.y.rows - 1 && args.count > 0)) {
        size_t shared = static_cast<size_t>(args.adapter.rank()) * sizeof(float);
        update_kernel<<<static_cast<unsigned>(args.count), block_threads, shared,
                        static_cast<cudaStream_t>(place.stream)>>>(args);
        cudaError_t error = cudaGetLastError();
        if (error) return error;
        args.count = 0;
      }
    }
  }
  return cudaSuccess;
}

}  // namespace lora4j
