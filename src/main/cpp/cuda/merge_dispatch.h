// Which kernel of the merge runs, on how many blocks, with which parameters. Launch is called as launch(kernel, blocks,
// threads, bytes of shared memory, blocks of a cluster, parameters) and gives an error code, 0 for none.
//
// A transposed w is merged as its transpose: the same products in the same order.
#pragma once

#include <climits>

#include "cuda/merge_fast.h"
#include "cuda/merge_plain.h"
#include "cuda/merge_tiled.h"
#include "cuda/variant.h"

namespace lora4j {

inline MergeArgs merge_args(const MergeParams& params) {
  bool by_row = params.w.col_stride <= params.w.row_stride;
  MergeArgs args = {};
  args.w = by_row ? params.w : params.w.transposed();
  args.from = by_row ? params.from : params.from.transposed();
  args.factors = by_row ? params.factors : params.factors.turned();
  args.not_finite = params.not_finite;
  args.count = params.count;
  for (int64_t u = 0; u < params.count; u++) {
    const LowRank& update = params.updates[u];
    args.updates[u] = by_row ? update : LowRank{update.b.transposed(), update.a.transposed(), update.scale};
  }
  return args;
}

// Whether rows are read 16 bytes at a time, from aligned addresses.
inline bool in_pieces(const Matrix& m) {
  int64_t elements = 16 / size_of(m.type);
  return m.col_stride == 1 && m.cols % elements == 0 && (m.rows == 1 || m.row_stride % elements == 0) &&
         reinterpret_cast<uintptr_t>(m.data) % 16 == 0;
}

// False if there are too many tiles or ranks for the tiled kernels.
inline bool tiled_args(const MergeArgs& merge, int tile_rows, int tile_cols, TiledArgs& args) {
  const Matrix& w = merge.w;
  int64_t col_tiles = (w.cols + tile_cols - 1) / tile_cols;
  int64_t row_tiles = (w.rows + tile_rows - 1) / tile_rows;
  if (col_tiles > INT_MAX / row_tiles) return false;
  args.w = w;
  args.from = merge.from;
  args.factors = merge.factors.data;
  args.not_finite = merge.not_finite;
  args.count = static_cast<int32_t>(merge.count);
  args.col_tiles = static_cast<int32_t>(col_tiles);
  for (int64_t u = 0; u < merge.count; u++) {
    if (merge.updates[u].rank() > INT_MAX - merge_slice) return false;
    args.updates[u] = {factor_of(merge.updates[u].a, true), factor_of(merge.updates[u].b, false),
                       static_cast<int32_t>(merge.updates[u].rank()), merge.updates[u].scale};
  }
  args.tiles = static_cast<uint32_t>(col_tiles * row_tiles);
  return true;
}

template <DType type, typename Launch>
int launch_tiled(const TiledArgs& args, Launch& launch) {
  bool wide = in_pieces(args.w) && in_pieces(args.from);
  auto kernel = !wide             ? merge_tiled<type, false, false>
                : args.count == 1 ? merge_tiled<type, true, true>
                                  : merge_tiled<type, true, false>;
  return launch(kernel, args.tiles, merge_threads, 0, 1, args);
}

// Two blocks to a processor, each with a share of the tiles.
template <DType type, typename Launch>
int launch_fast(const TiledArgs& args, Launch& launch) {
  bool wide = in_pieces(args.w) && in_pieces(args.from);
  unsigned most = 2 * static_cast<unsigned>(launch.processors);
  return launch(wide ? merge_fast<type, true> : merge_fast<type, false>, args.tiles < most ? args.tiles : most,
                fast_threads, FastTile<type>::shared, 1, args);
}

template <typename Launch>
int launch_plain(const MergeArgs& args, Launch& launch) {
  int64_t blocks = (args.w.rows * args.w.cols + plain_threads - 1) / plain_threads;
  blocks = blocks < most_blocks ? blocks : most_blocks;
  return launch(merge_plain, static_cast<unsigned>(blocks), plain_threads, 0, 1, args);
}

template <DType type, typename Launch>
int launch_merge(const MergeArgs& args, Variant variant, Launch& launch) {
  TiledArgs tiled = {};
  if (variant == Variant::fast && tiled_args(args, FastTile<type>::rows, fast_cols, tiled)) {
    return launch_fast<type>(tiled, launch);
  }
  if (variant == Variant::tiled && tiled_args(args, merge_tile_rows, merge_tile_cols, tiled)) {
    return launch_tiled<type>(tiled, launch);
  }
  return launch_plain(args, launch);
}

template <typename Launch>
int merge_with(const MergeParams& params, Variant variant, Launch launch) {
  MergeArgs args = merge_args(params);
  bool by_columns = args.factors.data && args.factors.across;
  if (params.count == 0 || args.w.type == DType::f8 || by_columns) return launch_plain(args, launch);
  if (args.w.type == DType::f32) return launch_merge<DType::f32>(args, variant, launch);
  if (args.w.type == DType::bf16) return launch_merge<DType::bf16>(args, variant, launch);
  return launch_merge<DType::f16>(args, variant, launch);
}

}  // namespace lora4j
