// The tiled merge: a block owns a tile of w (merge_plan.h), reads it early and writes it once; the sums stay in
// registers. While a slice of 16 ranks is multiplied, the next one, of this update or the following, is on its way to
// shared memory.
#pragma once

#include "cuda/cuda.h"
#include "cuda/merge_tile.h"

namespace lora4j {

struct Update {
  Factor a;
  Factor b;
  int32_t rank;
  float scale;
};

struct TiledArgs {
  Matrix w;
  Matrix from;
  const float* factors;  // of the rows, or null
  int32_t* not_finite;
  int32_t count;
  int32_t col_tiles;
  uint32_t tiles;
  Update updates[most_cuda_updates];
};
static_assert(sizeof(TiledArgs) <= 4096, "kernel parameters end at 4 KiB");

// Position in the sequence of all slices of all updates.
struct Cursor {
  int update;
  int first;

  L4_DEVICE int ranks(const TiledArgs& args) const {
    return min(args.updates[update].rank - first, merge_slice);
  }
  L4_DEVICE bool last_of_update(const TiledArgs& args) const {
    return first + merge_slice >= args.updates[update].rank;
  }
  L4_DEVICE Cursor next(const TiledArgs& args) const {
    return last_of_update(args) ? Cursor{update + 1, 0} : Cursor{update, first + merge_slice};
  }
};

template <int count>
L4_DEVICE void scale_row(const float* factors, int64_t row, float (&value)[count]) {
  if (!factors) return;
  float factor = factors[row];
#pragma unroll
  for (int j = 0; j < count; j++) value[j] *= factor;
}

using BLayout = SliceLayout<merge_tile_rows, false>;

template <DType type, bool wide, bool one>
__global__ void __launch_bounds__(merge_threads, one && type != DType::f32 ? 3 : 2)
    merge_tiled(const __grid_constant__ TiledArgs args) {
  using ALayout = SliceLayout<merge_tile_cols, type == DType::f32>;
  __shared__ __align__(16) float a[2][merge_slice * ALayout::stride];
  __shared__ __align__(16) float b[2][merge_slice * BLayout::stride];
  __shared__ uint4 a_raw[pieces_for<merge_tile_cols> * merge_threads];
  __shared__ uint4 b_raw[pieces_for<merge_tile_rows> * merge_threads];

  const int tile = static_cast<int>(blockIdx.x);
  const int64_t first_row = static_cast<int64_t>(tile / args.col_tiles) * merge_tile_rows;
  const int64_t first_col = static_cast<int64_t>(tile % args.col_tiles) * merge_tile_cols;
  const ThreadTile own = ThreadTile::of(static_cast<int>(threadIdx.x));
  const int64_t row = first_row + own.row_group * 8;

  auto start = [&](const Cursor& at) {
    const Update& update = args.updates[at.update];
    int ranks = at.ranks(args);
    fetch<merge_tile_cols, merge_threads>(update.a, {at.first, ranks, first_col, args.w.cols}, a_raw);
    fetch<merge_tile_rows, merge_threads>(update.b, {at.first, ranks, first_row, args.w.rows}, b_raw);
    commit_copies();
  };
  auto finish = [&](const Cursor& at, int buffer) {
    const Update& update = args.updates[at.update];
    int ranks = at.ranks(args);
    wait_copies<0>();
    spread<merge_tile_cols, type == DType::f32>(update.a, {at.first, ranks, first_col, args.w.cols}, a_raw, a[buffer]);
    spread<merge_tile_rows, false>(update.b, {at.first, ranks, first_row, args.w.rows}, b_raw, b[buffer]);
    __syncthreads();
  };

  Cursor at = {0, 0};
  start(at);
  // Of one update the rows wait in their own type until the sums are there; of several, as float32 for each update.
  WRow<type, wide> rows[one ? 8 : 1];
  float value[one ? 1 : 8][8];
#pragma unroll
  for (int i = 0; i < 8; i++) {
    if (row + i < args.w.rows) {
      rows[one ? i : 0].read(args.from, row + i, first_col, own.col_group);
      if constexpr (!one) rows[0].get(value[i]);
    }
  }
  finish(at, 0);
  float sum[8][8] = {};
  for (int buffer = 0;; buffer ^= 1) {
    Cursor next = at.next(args);
    bool more = next.update < args.count;
    if (more) start(next);
    multiply<ALayout::stride, ALayout::second, BLayout::stride, BLayout::second>(
        a[buffer] + own.col_group * 4, b[buffer] + own.row_group * 4, at.ranks(args), sum);
    if constexpr (!one) {
      if (at.last_of_update(args)) {
        float scale = args.updates[at.update].scale;
#pragma unroll
        for (int i = 0; i < 8; i++) {
#pragma unroll
          for (int j = 0; j < 8; j++) {
            value[i][j] = fmaf(scale, sum[i][j], value[i][j]);
            sum[i][j] = 0.0f;
          }
        }
      }
    }
    if (!more) break;
    finish(next, buffer ^ 1);
    at = next;
  }

  uint32_t bad = 0;
#pragma unroll
  for (int i = 0; i < 8; i++) {
    if (row + i >= args.w.rows) break;
    if constexpr (one) {
      float merged[8];
      rows[i].get(merged);
#pragma unroll
      for (int j = 0; j < 8; j++) merged[j] = fmaf(args.updates[0].scale, sum[i][j], merged[j]);
      scale_row(args.factors, row + i, merged);
      rows[i].set(merged);
      bad |= rows[i].write(args.w, row + i, first_col, own.col_group);
    } else {
      scale_row(args.factors, row + i, value[i]);
      rows[0].set(value[i]);
      bad |= rows[0].write(args.w, row + i, first_col, own.col_group);
    }
  }
  if (bad && args.not_finite) *args.not_finite = 1;
}

}  // namespace lora4j
