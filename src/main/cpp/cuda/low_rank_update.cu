// y[t] += s b (a x[t]) for a batch whose rows use different adapters, y (T, out), x (T, in).
//
// The batched variant: one launch for up to 512 rows and 192 adapters, whose pointers travel by value in the kernel's
// parameters. A row has several blocks, each for a part of the outputs. Every block computes the products a x[t] into
// shared memory, half a warp to a rank, then its threads run over its outputs; all but the first block of a row find a
// in the L2 cache. The chains are fixed for each row, so its bits do not depend on the batch. The plain variant launches
// once for each adapter, one block to a row, and takes any strides; LORA4J_CUDA_PLAIN=1 in the environment chooses it.
#include <cstdlib>

#include "core/definition.h"
#include "cuda/cuda.h"
#include "cuda/launch.h"

namespace lora4j {
namespace {

constexpr int block_threads = 256;
constexpr int most_rows = 512;
constexpr int most_slots = 192;

struct UpdateArgs {
  Matrix y;
  Matrix x;
  LowRank adapter;
  int32_t count;
  int32_t rows[most_rows];
};
static_assert(sizeof(UpdateArgs) <= 4096, "kernel parameters end at 4 KiB");

// The products of one row with all ranks, v[k] = a[k, :] . x[row, :]; both halves of a warp run equally often, so that
// all its threads meet in the shuffles.
template <typename Sum>
__device__ void products(int rank, float* v, Sum sum_of) {
  int lane = static_cast<int>(threadIdx.x) % definition_lanes;
  constexpr int groups = block_threads / definition_lanes;
  for (int first = 0; first < rank; first += groups) {
    int k = first + static_cast<int>(threadIdx.x) / definition_lanes;
    float sum = k < rank ? sum_of(k, lane) : 0.0f;
    for (int half = definition_lanes / 2; half > 0; half /= 2) {
      sum += __shfl_down_sync(0xffffffffu, sum, half, definition_lanes);
    }
    if (lane == 0 && k < rank) v[k] = sum;
  }
  __syncthreads();
}

__global__ void __launch_bounds__(block_threads) update_plain(const UpdateArgs args) {
  extern __shared__ float v[];
  int64_t row = args.rows[blockIdx.x];
  products(static_cast<int>(args.adapter.rank()), v,
           [&](int k, int lane) { return lane_sum(args.adapter.a, k, args.x, row, lane); });
  for (int64_t col = threadIdx.x; col < args.y.cols; col += block_threads) {
    args.y.set(row, col, updated_element(args.y.at(row, col), args.adapter, v, col));
  }
}

// Room for the products, in whole groups of four: ptxas reads the last ones as a vector, past the rank.
size_t shared_bytes(int64_t rank) { return static_cast<size_t>((rank + 3) / 4 * 4) * sizeof(float); }

// An adapter whose factors are contiguous along their rows.
struct Slot {
  const void* a;
  const void* b;
  int32_t a_stride;  // elements between rows
  int32_t b_stride;
  int32_t rank;
  float scale;
  DType a_type;
  DType b_type;
};

struct BatchArgs {
  Matrix y;
  Matrix x;
  int32_t parts;  // blocks to a row
  int32_t rows[most_rows];
  uint8_t slot[most_rows];
  Slot slots[most_slots];
};
static_assert(sizeof(BatchArgs) <= 12 * 1024, "kernel parameters end at 32764 bytes");

template <DType type>
__device__ float element(const void* data, int64_t index) {
  return load(data, index, type);
}

// As lane_sum of the definition, with eight loads of each operand under way at a time.
template <DType a_type, DType x_type>
__device__ float lane_sum_of(const void* a, const void* x, int64_t width, int lane) {
  constexpr int ahead = 8;
  float sum = 0.0f;
  int64_t i = lane;
  for (; i + (ahead - 1) * definition_lanes < width; i += ahead * definition_lanes) {
    float left[ahead], right[ahead];
#pragma unroll
    for (int j = 0; j < ahead; j++) {
      left[j] = element<a_type>(a, i + j * definition_lanes);
      right[j] = element<x_type>(x, i + j * definition_lanes);
    }
#pragma unroll
    for (int j = 0; j < ahead; j++) sum = fmaf(left[j], right[j], sum);
  }
  for (; i - lane < width; i += definition_lanes) {
    bool inside = i < width;
    sum = fmaf(inside ? element<a_type>(a, i) : 0.0f, inside ? element<x_type>(x, i) : 0.0f, sum);
  }
  return sum;
}

template <DType a_type>
__device__ float lane_sum_of(const void* a, const void* x, DType x_type, int64_t width, int lane) {
  if (x_type == DType::f32) return lane_sum_of<a_type, DType::f32>(a, x, width, lane);
  if (x_type == DType::bf16) return lane_sum_of<a_type, DType::bf16>(a, x, width, lane);
  return lane_sum_of<a_type, DType::f16>(a, x, width, lane);
}

// sum_k b[k] v[k], k ascending; wide: sixteen bytes of b at once.
template <DType type>
__device__ float dot(const void* b, const float* v, int rank, bool wide) {
  float sum = 0.0f;
  int k = 0;
  if constexpr (type != DType::f32) {
    if (wide) {
      for (; k + 8 <= rank; k += 8) {
        uint4 bits = *reinterpret_cast<const uint4*>(static_cast<const uint16_t*>(b) + k);
        const uint32_t words[4] = {bits.x, bits.y, bits.z, bits.w};
#pragma unroll
        for (int j = 0; j < 8; j++) {
          uint16_t half = static_cast<uint16_t>(words[j / 2] >> (16 * (j % 2)));
          sum = fmaf(type == DType::bf16 ? bf16_to_f32(half) : f16_to_f32(half), v[k + j], sum);
        }
      }
    }
  } else if (wide) {
    for (; k + 4 <= rank; k += 4) {
      float4 four = *reinterpret_cast<const float4*>(static_cast<const float*>(b) + k);
      sum = fmaf(four.x, v[k], sum);
      sum = fmaf(four.y, v[k + 1], sum);
      sum = fmaf(four.z, v[k + 2], sum);
      sum = fmaf(four.w, v[k + 3], sum);
    }
  }
  for (; k < rank; k++) sum = fmaf(element<type>(b, k), v[k], sum);
  return sum;
}

__device__ const void* past(const void* data, int64_t elements, DType type) {
  return static_cast<const char*>(data) + elements * size_of(type);
}

__global__ void __launch_bounds__(block_threads, 2) update_batch(const __grid_constant__ BatchArgs args) {
  extern __shared__ float v[];
  int which = static_cast<int>(blockIdx.x) / args.parts;
  int part = static_cast<int>(blockIdx.x) % args.parts;
  int64_t row = args.rows[which];
  const Slot& slot = args.slots[args.slot[which]];
  const void* x = past(args.x.data, row * args.x.row_stride, args.x.type);
  products(slot.rank, v, [&](int k, int lane) {
    const void* a = past(slot.a, static_cast<int64_t>(k) * slot.a_stride, slot.a_type);
    if (slot.a_type == DType::f32) return lane_sum_of<DType::f32>(a, x, args.x.type, args.x.cols, lane);
    if (slot.a_type == DType::bf16) return lane_sum_of<DType::bf16>(a, x, args.x.type, args.x.cols, lane);
    return lane_sum_of<DType::f16>(a, x, args.x.type, args.x.cols, lane);
  });
  bool wide = reinterpret_cast<uintptr_t>(slot.b) % 16 == 0 && slot.b_stride * size_of(slot.b_type) % 16 == 0;
  int64_t each = (args.y.cols + args.parts - 1) / args.parts;
  int64_t end = (part + 1) * each < args.y.cols ? (part + 1) * each : args.y.cols;
  for (int64_t col = part * each + threadIdx.x; col < end; col += block_threads) {
    const void* b = past(slot.b, col * slot.b_stride, slot.b_type);
    float sum = slot.b_type == DType::f32    ? dot<DType::f32>(b, v, slot.rank, wide)
                : slot.b_type == DType::bf16 ? dot<DType::bf16>(b, v, slot.rank, wide)
                                             : dot<DType::f16>(b, v, slot.rank, wide);
    args.y.set(row, col, fmaf(slot.scale, sum, args.y.at(row, col)));
  }
}

int update_plainly(const LowRankUpdateParams& params, cudaStream_t stream) {
  UpdateArgs args = {};
  args.y = params.y;
  args.x = params.x;
  for (int64_t a = 0; a < params.count; a++) {
    args.adapter = params.adapters[a];
    args.count = 0;
    for (int64_t t = 0; t < params.y.rows; t++) {
      if (params.rows[t] == a) args.rows[args.count++] = static_cast<int32_t>(t);
      if (args.count == most_rows || (t == params.y.rows - 1 && args.count > 0)) {
        size_t shared = shared_bytes(args.adapter.rank());
        update_plain<<<static_cast<unsigned>(args.count), block_threads, shared, stream>>>(args);
        cudaError_t error = cudaGetLastError();
        if (error) return error;
        args.count = 0;
      }
    }
  }
  return cudaSuccess;
}

bool fits(const Matrix& factor) {
  return (factor.col_stride == 1 || factor.cols <= 1) && factor.row_stride <= INT32_MAX;
}

// Whether the batched kernel takes all arguments as they are.
bool batchable(const LowRankUpdateParams& params) {
  if (params.x.col_stride != 1 && params.x.cols > 1) return false;
  for (int64_t a = 0; a < params.count; a++) {
    if (!fits(params.adapters[a].a) || !fits(params.adapters[a].b)) return false;
  }
  const char* plain = std::getenv("LORA4J_CUDA_PLAIN");
  return !(plain && *plain == '1');
}

cudaError_t launch(BatchArgs& args, int rows, int rank, cudaStream_t stream) {
  if (rows == 0) return cudaSuccess;
  // Enough blocks for the device, and at least 256 outputs to a block.
  int64_t most_parts = (args.y.cols + block_threads - 1) / block_threads;
  int64_t parts = 264 / rows < 1 ? 1 : 264 / rows;
  parts = parts < 16 ? parts : 16;
  args.parts = static_cast<int32_t>(parts < most_parts ? parts : most_parts);
  update_batch<<<static_cast<unsigned>(rows * args.parts), block_threads, shared_bytes(rank), stream>>>(args);
  return cudaGetLastError();
}

}  // namespace

int low_rank_update_cuda(const LowRankUpdateParams& params, const Place& place) {
  DeviceScope device(place.ordinal);
  if (device.error()) return device.error();
  cudaStream_t stream = static_cast<cudaStream_t>(place.stream);
  if (!batchable(params)) return update_plainly(params, stream);
  BatchArgs args;
  args.y = params.y;
  args.x = params.x;
  int rows = 0, slots = 0, rank = 0;
  // The slots in use, by adapter: a launch ends when either table is full.
  int64_t slot_of[most_slots];
  for (int64_t t = 0; t < params.y.rows; t++) {
    int64_t which = params.rows[t];
    if (which < 0) continue;
    int slot = slots - 1;
    while (slot >= 0 && slot_of[slot] != which) slot--;
    if (rows == most_rows || (slot < 0 && slots == most_slots)) {
      cudaError_t error = launch(args, rows, rank, stream);
      if (error) return error;
      rows = slots = rank = 0;
      slot = -1;
    }
    if (slot < 0) {
      const LowRank& adapter = params.adapters[which];
      slot = slots++;
      slot_of[slot] = which;
      args.slots[slot] = {adapter.a.data,
                          adapter.b.data,
                          static_cast<int32_t>(adapter.a.row_stride),
                          static_cast<int32_t>(adapter.b.row_stride),
                          static_cast<int32_t>(adapter.rank()),
                          adapter.scale,
                          adapter.a.type,
                          adapter.b.type};
      rank = rank > args.slots[slot].rank ? rank : args.slots[slot].rank;
    }
    args.rows[rows] = static_cast<int32_t>(t);
    args.slot[rows++] = static_cast<uint8_t>(slot);
  }
  return launch(args, rows, rank, stream);
}

}  // namespace lora4j
