// Gram matrices and DoRA's row norms. Eight threads share a dot product, one to a chain, and meet in shuffles; a block
// takes 32 dot products at a time. A row of w has a block of its own, which reads it from the caches after the first time.
#include "core/norms.h"
#include "cuda/cuda.h"
#include "cuda/launch.h"

namespace lora4j {
namespace {

constexpr int block_threads = 256;
constexpr int dots = block_threads / double_lanes;
constexpr int64_t most_blocks = 1 << 20;

// In lane 0 of each eight threads; all threads of a warp call it together.
__device__ double together(double sum) {
  for (int half = double_lanes / 2; half > 0; half /= 2) sum = sum + __shfl_down_sync(0xffffffffu, sum, half, double_lanes);
  return sum;
}

__global__ void __launch_bounds__(block_threads) gram(const GramParams params) {
  int lane = static_cast<int>(threadIdx.x) % double_lanes;
  int64_t count = params.x.rows * params.y.rows;
  for (int64_t first = static_cast<int64_t>(blockIdx.x) * dots; first < count;
       first += static_cast<int64_t>(gridDim.x) * dots) {
    int64_t at = first + threadIdx.x / double_lanes;
    double sum = 0;
    if (at < count) sum = double_lane(params.x, at / params.y.rows, params.y, at % params.y.rows, lane);
    sum = together(sum);
    if (lane == 0 && at < count) params.g[at] = sum;
  }
}

__global__ void __launch_bounds__(block_threads) row_norms(const __grid_constant__ RowNormsParams params,
                                                           const double* gram_of_a) {
  extern __shared__ double shared[];  // (2 * rank + 1)
  const LowRank& update = params.update;
  int64_t rank = update.rank();
  double* products = shared;  // with a, then the square
  double* inner = shared + rank + 1;
  int lane = static_cast<int>(threadIdx.x) % double_lanes;
  int64_t row = blockIdx.x;
  for (int64_t first = 0; first <= rank; first += dots) {
    int64_t k = first + threadIdx.x / double_lanes;
    double sum = 0;
    if (k < rank) sum = double_lane(params.w, row, update.a, k, lane);
    if (k == rank) sum = double_lane(params.w, row, params.w, row, lane);
    sum = together(sum);
    if (lane == 0 && k <= rank) products[k] = sum;
  }
  for (int64_t l = threadIdx.x; l < rank; l += block_threads) inner[l] = factor_sum(update.b, row, gram_of_a + l, rank);
  __syncthreads();
  if (threadIdx.x == 0) {
    double cross = factor_sum(update.b, row, products, 1);
    double quadratic = factor_sum(update.b, row, inner, 1);
    params.norms.set(row, 0, norm_of(products[rank], cross, quadratic, update.scale));
  }
}

cudaError_t launch_gram(const GramParams& params, cudaStream_t stream) {
  int64_t blocks = (params.x.rows * params.y.rows + dots - 1) / dots;
  gram<<<static_cast<unsigned>(blocks < most_blocks ? blocks : most_blocks), block_threads, 0, stream>>>(params);
  return cudaGetLastError();
}

}  // namespace

int gram_cuda(const GramParams& params, const Place& place) {
  DeviceScope device(place.ordinal);
  if (device.error()) return device.error();
  return launch_gram(params, static_cast<cudaStream_t>(place.stream));
}

int row_norms_cuda(const RowNormsParams& params, void* scratch, const Place& place) {
  DeviceScope device(place.ordinal);
  if (device.error()) return device.error();
  cudaStream_t stream = static_cast<cudaStream_t>(place.stream);
  auto* gram_of_a = static_cast<double*>(scratch);
  cudaError_t error = launch_gram({gram_of_a, params.update.a, params.update.a}, stream);
  if (error) return error;
  auto bytes = static_cast<size_t>(2 * params.update.rank() + 1) * sizeof(double);
  auto blocks = static_cast<unsigned>(params.w.rows);
  row_norms<<<blocks, block_threads, bytes, stream>>>(params, gram_of_a);
  return cudaGetLastError();
}

}  // namespace lora4j
