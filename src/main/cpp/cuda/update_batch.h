// The plain and the batched update. Plain: one block to a row of one adapter, any strides. Batched: up to 512 rows and 192
// adapters, whose pointers travel by value in the kernel's parameters. A row has several blocks, each for a part of the
// outputs. Every block computes the products a x[t] into shared memory, half a warp to a rank, then its threads run over
// its outputs; all but the first block of a row find a in the L2 cache.
#pragma once

#include "core/definition.h"
#include "cuda/device.h"
#include "cuda/slot.h"
#include "cuda/update_plan.h"

namespace lora4j {

constexpr int batch_threads = 256;

struct PlainArgs {
  Matrix y;
  Matrix x;
  LowRank adapter;
  int32_t count;
  int32_t rows[most_batch_rows];
};
static_assert(sizeof(PlainArgs) <= 4096, "kernel parameters end at 4 KiB");

// The products of one row with all ranks, v[k] = a[k, :] . x[row, :]; both halves of a warp run equally often, so that
// all its threads meet in the shuffles.
template <typename Sum>
L4_DEVICE void products(int rank, float* v, Sum sum_of) {
  int lane = static_cast<int>(threadIdx.x) % definition_lanes;
  constexpr int groups = batch_threads / definition_lanes;
  for (int first = 0; first < rank; first += groups) {
    int k = first + static_cast<int>(threadIdx.x) / definition_lanes;
    float sum = k < rank ? sum_of(k, lane) : 0.0f;
    for (int half = definition_lanes / 2; half > 0; half /= 2) {
      sum += shuffle_down(sum, half, definition_lanes);
    }
    if (lane == 0 && k < rank) v[k] = sum;
  }
  __syncthreads();
}

__global__ void __launch_bounds__(batch_threads) update_plain(const __grid_constant__ PlainArgs args) {
  float* v = dynamic_shared();
  int64_t row = args.rows[blockIdx.x];
  products(static_cast<int>(args.adapter.rank()), v,
           [&](int k, int lane) { return lane_sum(args.adapter.a, k, args.x, row, lane); });
  for (int64_t col = threadIdx.x; col < args.y.cols; col += batch_threads) {
    args.y.set(row, col, updated_element(args.y.at(row, col), args.adapter, v, col));
  }
}

struct BatchArgs {
  Matrix y;
  Matrix x;
  int32_t parts;  // blocks to a row
  int32_t rows[most_batch_rows];
  uint8_t slot[most_batch_rows];
  Slot slots[most_batch_adapters];
};
static_assert(sizeof(BatchArgs) <= 12 * 1024, "kernel parameters end at 32764 bytes");

// As lane_sum of the definition, with eight loads of each operand under way at a time.
template <DType a_type, DType x_type>
L4_DEVICE float lane_sum_of(const void* a, const void* x, int64_t width, int lane) {
  constexpr int ahead = 8;
  float sum = 0.0f;
  int64_t i = lane;
  for (; i + (ahead - 1) * definition_lanes < width; i += ahead * definition_lanes) {
    float left[ahead], right[ahead];
#pragma unroll
    for (int j = 0; j < ahead; j++) {
      left[j] = load(a, i + j * definition_lanes, a_type);
      right[j] = load(x, i + j * definition_lanes, x_type);
    }
#pragma unroll
    for (int j = 0; j < ahead; j++) sum = fmaf(left[j], right[j], sum);
  }
  for (; i - lane < width; i += definition_lanes) {
    bool inside = i < width;
    sum = fmaf(inside ? load(a, i, a_type) : 0.0f, inside ? load(x, i, x_type) : 0.0f, sum);
  }
  return sum;
}

template <DType a_type>
L4_DEVICE float lane_sum_of(const void* a, const void* x, DType x_type, int64_t width, int lane) {
  if (x_type == DType::f32) return lane_sum_of<a_type, DType::f32>(a, x, width, lane);
  if (x_type == DType::bf16) return lane_sum_of<a_type, DType::bf16>(a, x, width, lane);
  return lane_sum_of<a_type, DType::f16>(a, x, width, lane);
}

// sum_k b[k] v[k], k ascending; wide: sixteen bytes of b at once.
template <DType type>
L4_DEVICE float dot(const void* b, const float* v, int rank, bool wide) {
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
  for (; k < rank; k++) sum = fmaf(load(b, k, type), v[k], sum);
  return sum;
}

L4_DEVICE const void* past(const void* data, int64_t elements, DType type) {
  return static_cast<const char*>(data) + elements * size_of(type);
}

__global__ void __launch_bounds__(batch_threads, 2) update_batch(const __grid_constant__ BatchArgs args) {
  float* v = dynamic_shared();
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
  for (int64_t col = part * each + threadIdx.x; col < end; col += batch_threads) {
    const void* b = past(slot.b, col * slot.b_stride, slot.b_type);
    float sum = slot.b_type == DType::f32    ? dot<DType::f32>(b, v, slot.rank, wide)
                : slot.b_type == DType::bf16 ? dot<DType::bf16>(b, v, slot.rank, wide)
                                             : dot<DType::f16>(b, v, slot.rank, wide);
    args.y.set(row, col, fmaf(slot.scale, sum, args.y.at(row, col)));
  }
}

}  // namespace lora4j
