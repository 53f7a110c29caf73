// The gradients of low_rank_update. For each adapter, its rows go by 256, whose numbers travel by value. A launch of one
// block to a row computes u = b^T dy[t] and, unless it is given, h = a x[t] into scratch memory and adds to dx[t]. Two
// more add the rows' chains to float32 sums of da and db, a thread to eight ranks of a column, so that x and dy are read
// once for eight ranks; the last of them rounds into the gradient.
#include "core/definition.h"
#include "core/low_rank_backward.h"
#include "cuda/cuda.h"
#include "cuda/launch.h"

namespace lora4j {
namespace {

constexpr int block_threads = 256;
constexpr int thread_ranks = 8;
constexpr int most_rows = static_cast<int>(gradient_chunk);

struct RowArgs {
  Matrix dx;
  Matrix dy;
  Matrix x;
  Matrix h;
  LowRank adapter;
  float* u;  // (count, rank)
  float* kept_h;
  int32_t rows[most_rows];
};
static_assert(sizeof(RowArgs) <= 4096, "kernel parameters end at 4 KiB");

// v[k] = factor[k, :] . input[row, :], half a warp to a rank; both halves run equally often and meet in the shuffles.
__device__ void products(const Matrix& factor, const Matrix& input, int64_t row, float* v) {
  int lane = static_cast<int>(threadIdx.x) % definition_lanes;
  constexpr int groups = block_threads / definition_lanes;
  for (int64_t first = 0; first < factor.rows; first += groups) {
    int64_t k = first + threadIdx.x / definition_lanes;
    float sum = k < factor.rows ? lane_sum(factor, k, input, row, lane) : 0.0f;
    for (int half = definition_lanes / 2; half > 0; half /= 2) {
      sum += __shfl_down_sync(0xffffffffu, sum, half, definition_lanes);
    }
    if (lane == 0 && k < factor.rows) v[k] = sum;
  }
}

__global__ void __launch_bounds__(block_threads) backward_rows(const __grid_constant__ RowArgs args) {
  int64_t row = args.rows[blockIdx.x];
  int64_t rank = args.adapter.rank();
  float* u = args.u + blockIdx.x * rank;
  float* h = args.kept_h + blockIdx.x * rank;
  products(args.adapter.b.transposed(), args.dy, row, u);
  if (args.h.rows > 0) {
    for (int64_t k = threadIdx.x; k < rank; k += block_threads) h[k] = args.h.at(row, k);
  } else {
    products(args.adapter.a, args.x, row, h);
  }
  __syncthreads();
  LowRank turned = {{}, args.adapter.a.transposed(), args.adapter.scale};
  turned.a.rows = rank;
  for (int64_t col = threadIdx.x; col < args.dx.cols; col += block_threads) {
    args.dx.set(row, col, updated_element(args.dx.at(row, col), turned, u, col));
  }
}

struct ChunkArgs {
  Matrix gradient;  // (rank, width)
  Matrix input;     // (T, width)
  const float* left;  // (count, rank)
  float* sums;        // (rank, width)
  float scale;
  int32_t count;
  int32_t first;  // whether the sums start with the gradient
  int32_t last;   // whether they go to it
  int32_t rows[most_rows];
};
static_assert(sizeof(ChunkArgs) <= 4096, "kernel parameters end at 4 KiB");

__global__ void __launch_bounds__(block_threads) backward_chunk(const __grid_constant__ ChunkArgs args) {
  int64_t col = static_cast<int64_t>(blockIdx.x) * block_threads + threadIdx.x;
  int64_t rank = args.gradient.rows;
  if (col >= args.gradient.cols) return;
  for (int64_t k0 = static_cast<int64_t>(blockIdx.y) * thread_ranks; k0 < rank;
       k0 += static_cast<int64_t>(gridDim.y) * thread_ranks) {
    float sum[thread_ranks] = {};
    for (int t = 0; t < args.count; t++) {
      float value = args.input.at(args.rows[t], col);
      const float* left = args.left + t * rank;
#pragma unroll
      for (int j = 0; j < thread_ranks; j++) sum[j] = fmaf(left[k0 + j < rank ? k0 + j : rank - 1], value, sum[j]);
    }
#pragma unroll
    for (int j = 0; j < thread_ranks; j++) {
      int64_t k = k0 + j;
      if (k < rank) {
        int64_t at = k * args.gradient.cols + col;
        float value = fmaf(args.scale, sum[j], args.first ? args.gradient.at(k, col) : args.sums[at]);
        if (args.last) {
          args.gradient.set(k, col, value);
        } else {
          args.sums[at] = value;
        }
      }
    }
  }
}

struct Memory {
  float* u;
  float* h;
  float* a_sums;
  float* b_sums;
};

int64_t padded(int64_t floats) { return (floats + 3) / 4 * 4; }

cudaError_t launch_chunk(const Matrix& gradient, const Matrix& input, const float* left, float* sums, const RowArgs& of,
                         int count, bool first, bool last, cudaStream_t stream) {
  if (gradient.rows == 0 || gradient.cols == 0) return cudaSuccess;
  ChunkArgs args = {gradient, input, left, sums, of.adapter.scale, count, first, last, {}};
  for (int t = 0; t < count; t++) args.rows[t] = of.rows[t];
  int64_t across = (gradient.cols + block_threads - 1) / block_threads;
  int64_t down = (gradient.rows + thread_ranks - 1) / thread_ranks;
  dim3 grid(static_cast<unsigned>(across), static_cast<unsigned>(down < 65535 ? down : 65535));
  backward_chunk<<<grid, block_threads, 0, stream>>>(args);
  return cudaGetLastError();
}

cudaError_t launch(const LowRankBackwardParams& params, const Gradient& gradient, const Memory& memory, RowArgs& args,
                   int count, bool first, bool last, cudaStream_t stream) {
  if (count == 0) return cudaSuccess;
  backward_rows<<<static_cast<unsigned>(count), block_threads, 0, stream>>>(args);
  cudaError_t error = cudaGetLastError();
  if (!error) {
    error = launch_chunk(gradient.a, params.x, args.u, memory.a_sums, args, count, first, last, stream);
  }
  if (!error) {
    error = launch_chunk(gradient.b.transposed(), params.dy, args.kept_h, memory.b_sums, args, count, first, last, stream);
  }
  return error;
}

}  // namespace

int64_t low_rank_backward_cuda_scratch(int64_t in, int64_t out, int64_t rank) {
  return 4 * (2 * padded(most_rows * rank) + padded(rank * in) + padded(rank * out));
}

int low_rank_backward_cuda(const LowRankBackwardParams& params, void* scratch, const Place& place) {
  DeviceScope device(place.ordinal);
  if (device.error()) return device.error();
  cudaStream_t stream = static_cast<cudaStream_t>(place.stream);
  for (int64_t a = 0; a < params.count; a++) {
    const LowRank& adapter = params.adapters[a];
    Memory memory = {};
    memory.u = static_cast<float*>(scratch);
    memory.h = memory.u + padded(most_rows * adapter.rank());
    memory.a_sums = memory.h + padded(most_rows * adapter.rank());
    memory.b_sums = memory.a_sums + padded(adapter.rank() * params.x.cols);
    RowArgs args = {params.dx, params.dy, params.x, params.h, adapter, memory.u, memory.h, {}};
    int count = 0;
    bool first = true;
    for (int64_t t = 0; t < params.dy.rows; t++) {
      if (params.rows[t] != a) continue;
      if (count == most_rows) {
        cudaError_t error = launch(params, params.gradients[a], memory, args, count, first, false, stream);
        if (error) return error;
        first = false;
        count = 0;
      }
      args.rows[count++] = static_cast<int32_t>(t);
    }
    cudaError_t error = launch(params, params.gradients[a], memory, args, count, first, true, stream);
    if (error) return error;
  }
  return cudaSuccess;
}

}  // namespace lora4j
