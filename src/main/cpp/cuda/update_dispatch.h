// Which kernels of the update run, on how many blocks, with which parameters; Launch as in merge_dispatch.h.
#pragma once

#include "cuda/update_batch.h"
#include "cuda/update_cluster.h"
#include "cuda/variant.h"

namespace lora4j {

// Room for the products, in whole groups of four: ptxas reads the last ones as a vector, past the rank.
inline int64_t shared_bytes(int64_t rank) { return (rank + 3) / 4 * 4 * static_cast<int64_t>(sizeof(float)); }

template <typename Launch>
int update_plainly(const LowRankUpdateParams& params, Launch& launch) {
  PlainArgs args = {};
  args.y = params.y;
  args.x = params.x;
  for (int64_t a = 0; a < params.count; a++) {
    args.adapter = params.adapters[a];
    args.count = 0;
    for (int64_t t = 0; t < params.y.rows; t++) {
      if (params.rows[t] == a) args.rows[args.count++] = static_cast<int32_t>(t);
      if (args.count == most_batch_rows || (t == params.y.rows - 1 && args.count > 0)) {
        int64_t shared = shared_bytes(args.adapter.rank());
        int error = launch(update_plain, static_cast<unsigned>(args.count), batch_threads, shared, 1, args);
        if (error) return error;
        args.count = 0;
      }
    }
  }
  return 0;
}

inline bool fits(const Matrix& factor) {
  return (factor.col_stride == 1 || factor.cols <= 1) && factor.row_stride <= INT32_MAX;
}

// Whether the kernels for batches take all arguments as they are.
inline bool batchable(const LowRankUpdateParams& params) {
  if (params.x.col_stride != 1 && params.x.cols > 1) return false;
  for (int64_t a = 0; a < params.count; a++) {
    if (!fits(params.adapters[a].a) || !fits(params.adapters[a].b)) return false;
  }
  return true;
}

template <typename Launch>
int launch_batch(BatchArgs& args, int rows, int rank, Launch& launch) {
  if (rows == 0) return 0;
  // Enough blocks for the device, and at least 256 outputs to a block.
  int64_t most_parts = (args.y.cols + batch_threads - 1) / batch_threads;
  int64_t parts = 264 / rows < 1 ? 1 : 264 / rows;
  parts = parts < 16 ? parts : 16;
  args.parts = static_cast<int32_t>(parts < most_parts ? parts : most_parts);
  return launch(update_batch, static_cast<unsigned>(rows * args.parts), batch_threads, shared_bytes(rank), 1, args);
}

template <typename Launch>
int update_in_batches(const LowRankUpdateParams& params, Launch& launch) {
  BatchArgs args;
  args.y = params.y;
  args.x = params.x;
  int rows = 0, slots = 0, rank = 0;
  // The slots in use, by adapter: a launch ends when either table is full.
  int64_t slot_of[most_batch_adapters];
  for (int64_t t = 0; t < params.y.rows; t++) {
    int64_t which = params.rows[t];
    if (which < 0) continue;
    int slot = slots - 1;
    while (slot >= 0 && slot_of[slot] != which) slot--;
    if (rows == most_batch_rows || (slot < 0 && slots == most_batch_adapters)) {
      int error = launch_batch(args, rows, rank, launch);
      if (error) return error;
      rows = slots = rank = 0;
      slot = -1;
    }
    if (slot < 0) {
      const LowRank& adapter = params.adapters[which];
      slot = slots++;
      slot_of[slot] = which;
      args.slots[slot] = Slot::of(adapter);
      rank = rank > args.slots[slot].rank ? rank : args.slots[slot].rank;
    }
    args.rows[rows] = static_cast<int32_t>(t);
    args.slot[rows++] = static_cast<uint8_t>(slot);
  }
  return launch_batch(args, rows, rank, launch);
}

// cluster: the blocks that share a group's products, device_cluster of the code that will run.
template <typename Args, typename Launch>
int launch_cluster(const LowRankUpdateParams& params, BatchPlan& plan, int cluster, Launch& launch) {
  Args args;
  args.y = params.y;
  args.x = params.x;
  int64_t rank = 0;
  for (int s = 0; s < plan.adapters; s++) {
    const LowRank& adapter = params.adapters[plan.adapter[s]];
    args.slots[s] = Slot::of(adapter);
    rank = rank > adapter.rank() ? rank : adapter.rank();
  }
  args.shape = UpdateShape::choose(plan.rows, rank, cluster);
  plan.cut(args.shape.rows);
  for (int i = 0; i < plan.rows; i++) args.row[i] = plan.row[i];
  for (int g = 0; g < plan.groups; g++) args.group[g] = plan.group[g];
  args.blocks = blocks_for_group(plan.groups, params.y.cols, cluster);

  return launch(update_cluster<Args>, static_cast<unsigned>(plan.groups * args.blocks), update_threads,
                args.shape.shared, cluster, args);
}

template <typename Launch>
int update_in_clusters(const LowRankUpdateParams& params, int cluster, Launch& launch) {
  BatchPlan plan;
  int error = 0;
  for (int64_t t = 0; t < params.y.rows && !error;) {
    t = plan.take(params.rows, t, params.y.rows);
    if (plan.rows == 0) break;
    bool small = plan.rows <= small_rows && plan.adapters <= small_slots;
    error = small ? launch_cluster<SmallArgs>(params, plan, cluster, launch)
                  : launch_cluster<LargeArgs>(params, plan, cluster, launch);
  }
  return error;
}

// Clusters divide the work of few rows and of large ranks; many rows of small ranks fill the device without.
inline bool in_clusters(const LowRankUpdateParams& params) {
  constexpr int64_t few_rows = 32, large_rank = 33;
  if (params.y.rows <= few_rows) return true;
  for (int64_t a = 0; a < params.count; a++) {
    if (params.adapters[a].rank() >= large_rank) return true;
  }
  return false;
}

// cluster: the blocks of a cluster, device_cluster of the code that will run.
template <typename Launch>
int low_rank_update_with(const LowRankUpdateParams& params, Variant variant, int cluster, Launch launch) {
  if (variant == Variant::plain || !batchable(params)) return update_plainly(params, launch);
  return in_clusters(params) ? update_in_clusters(params, cluster, launch) : update_in_batches(params, launch);
}

}  // namespace lora4j
