// w = some rows of a weight of 4 or 8 bits, a thread to an element.
#include "core/quantized.h"
#include "cuda/cuda.h"
#include "cuda/launch.h"

namespace lora4j {
namespace {

constexpr int block_threads = 256;
constexpr int64_t most_blocks = 1 << 16;

__global__ void __launch_bounds__(block_threads) dequantize(const __grid_constant__ DequantizeParams params) {
  __shared__ float values[16];  // parameters cannot be indexed by a thread's own number without a copy
  if (threadIdx.x < 16) values[threadIdx.x] = params.weight.values[threadIdx.x];
  __syncthreads();
  const Matrix& w = params.w;
  int64_t step = static_cast<int64_t>(gridDim.x) * block_threads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * block_threads + threadIdx.x; i < w.rows * w.cols; i += step) {
    int64_t row = i / w.cols;
    int64_t col = i % w.cols;
    w.set(row, col, dequantized_element(params.weight, values, params.first_row + row, col));
  }
}

}  // namespace

int dequantize_cuda(const DequantizeParams& params, const Place& place) {
  DeviceScope device(place.ordinal);
  if (device.error()) return device.error();
  int64_t blocks = (params.w.rows * params.w.cols + block_threads - 1) / block_threads;
  dequantize<<<static_cast<unsigned>(blocks < most_blocks ? blocks : most_blocks), block_threads, 0,
               static_cast<cudaStream_t>(place.stream)>>>(params);
  return cudaGetLastError();
}

}  // namespace lora4j
