// The clustered update: a group of rows of one adapter (update_plan.h) belongs to a cluster of eight blocks. Each computes
// the products a x[t] of its share of the ranks, from chunks that stream through shared memory, and hands them to the
// others; then each runs over its share of the outputs. Before sm_90 every block computes all products.
#pragma once

#include "core/definition.h"
#include "cuda/slot.h"
#include "cuda/update_tile.h"

namespace lora4j {

constexpr int small_rows = 32;
constexpr int small_slots = 16;

// Small batches have tables of their own: parameters are copied with each launch.
template <int most_rows, int most_slots>
struct ClusterArgs {
  Matrix y;
  Matrix x;
  UpdateShape shape;
  int32_t blocks;  // to a group
  int32_t row[most_rows];
  RowGroup group[most_rows];
  Slot slots[most_slots];
};
using SmallArgs = ClusterArgs<small_rows, small_slots>;
using LargeArgs = ClusterArgs<most_batch_rows, most_batch_adapters>;
static_assert(sizeof(SmallArgs) <= 1280 && sizeof(LargeArgs) <= 12 * 1024, "kernel parameters end at 32764 bytes");

L4_DEVICE bool aligned_rows(const void* data, int64_t stride, DType type) {
  return reinterpret_cast<uintptr_t>(data) % 16 == 0 && stride * size_of(type) % 16 == 0;
}

// Outputs [begin, end) of a group, n rows at once; rows past the group's repeat its last.
template <DType type, int n>
L4_DEVICE void outputs(const Matrix& y, const int32_t* row, int rows, const Slot& slot, const float* v,
                                        int v_stride, int64_t begin, int64_t end) {
  bool wide = aligned_rows(slot.b, slot.b_stride, slot.b_type);
  for (int64_t col = begin + threadIdx.x; col < end; col += update_threads) {
    float before[n], sum[n] = {};
    const float* products_of[n];
#pragma unroll
    for (int t = 0; t < n; t++) {
      products_of[t] = v + min(t, rows - 1) * v_stride;
      before[t] = y.at(row[min(t, rows - 1)], col);
    }
    const char* b = static_cast<const char*>(slot.b) + col * slot.b_stride * Type<type>::bytes;
    dots<type, n>(b, products_of, slot.rank, wide, sum);
#pragma unroll
    for (int t = 0; t < n; t++) {
      if (t < rows) y.set(row[t], col, fmaf(slot.scale, sum[t], before[t]));
    }
  }
}

template <typename Args>
__global__ void __launch_bounds__(update_threads, 2) update_cluster(const __grid_constant__ Args args) {
  float* v = dynamic_shared();
  constexpr int cluster = device_cluster;
  cluster_arrive();
  const RowGroup group = args.group[blockIdx.x / static_cast<unsigned>(args.blocks)];
  const int part = static_cast<int>(blockIdx.x) % args.blocks;
  const Slot& slot = args.slots[group.slot];
  const int32_t* row = args.row + group.first;
  const int rows = group.rows;
  const int64_t each_out = (args.y.cols + args.blocks - 1) / args.blocks;
  const int64_t begin = part * each_out;
  const int64_t end = min(begin + each_out, args.y.cols);
  // b is read after the products: have it in the L2 cache by then.
  for (int64_t col = begin + threadIdx.x; col < end; col += update_threads) {
    const int bytes = slot.rank * static_cast<int>(size_of(slot.b_type));
    const char* line = static_cast<const char*>(slot.b) + col * slot.b_stride * size_of(slot.b_type);
    for (int at = 0; at < bytes; at += 128) prefetch_l2(line + at);
  }

  const int each_rank = (slot.rank + cluster - 1) / cluster;
  const int first_rank = part % cluster * each_rank;
  const int end_rank = min(first_rank + each_rank, slot.rank);
  Pass pass;
  pass.x = {static_cast<const char*>(args.x.data), args.x.row_stride * size_of(args.x.type), args.x.type,
            aligned_rows(args.x.data, args.x.row_stride, args.x.type)};
  pass.row = row;
  pass.rows = rows;
  pass.width = args.x.cols;
  pass.chunk = update_chunk_bytes / (slot.a_type == DType::f32 || args.x.type == DType::f32 ? 4 : 2);
  pass.shared = reinterpret_cast<char*>(v + args.shape.rows * args.shape.v_stride);
  pass.stage_bytes = (args.shape.pass + args.shape.rows) * update_chunk_stride;
  bool all_here = false;  // the cluster's blocks have started, so that their memory may be written
  for (int first = first_rank; first < end_rank; first += args.shape.pass) {
    pass.a = {static_cast<const char*>(slot.a) + static_cast<int64_t>(first) * slot.a_stride * size_of(slot.a_type),
              slot.a_stride * size_of(slot.a_type), slot.a_type, aligned_rows(slot.a, slot.a_stride, slot.a_type)};
    pass.ranks = min(args.shape.pass, end_rank - first);
    float kept[2] = {};
    with_type(slot.a_type, [&](auto a_type) {
      with_type(args.x.type, [&](auto x_type) {
        if (rows <= 4) {
          products<decltype(a_type)::value, decltype(x_type)::value, 1>(pass, kept);
        } else {
          products<decltype(a_type)::value, decltype(x_type)::value, 2>(pass, kept);
        }
      });
    });
    if (!all_here) cluster_wait();
    all_here = true;
    const ProductOwner own = ProductOwner::of(static_cast<int>(threadIdx.x));
#pragma unroll
    for (int i = 0; i < 2; i++) {
      const int in_group = own.row + i * ProductOwner::rows_apart;
      if (own.rank >= pass.ranks || in_group >= rows) continue;
      store_in(v + in_group * args.shape.v_stride + first + own.rank, own.lane, kept[i]);
    }
  }
  if (!all_here) cluster_wait();
  cluster_arrive();
  cluster_wait();

  with_type(slot.b_type, [&](auto type) {
    constexpr DType b_type = decltype(type)::value;
    if (rows == 1) {
      outputs<b_type, 1>(args.y, row, rows, slot, v, args.shape.v_stride, begin, end);
    } else if (rows <= 4) {
      outputs<b_type, 4>(args.y, row, rows, slot, v, args.shape.v_stride, begin, end);
    } else {
      outputs<b_type, 8>(args.y, row, rows, slot, v, args.shape.v_stride, begin, end);
    }
  });
}

}  // namespace lora4j
