// w = round(from + sum_i s_i b_i a_i), w (out, in) row by row; from is w itself or a matrix of the same shape and type.
//
// The tiled variant: a block owns a tile of w (merge_plan.h), reads it early and writes it once; the sums stay in
// registers. While a slice of 16 ranks is multiplied, the next one, of this update or the following, is on its way to
// shared memory. A transposed w is merged as its transpose: the same products in the same order. The plain variant is
// the definition itself, one thread to an element; set LORA4J_CUDA_PLAIN=1 in the environment to use it, as a
// reference. Both give the same bits.
#include <climits>
#include <cstdlib>

#include "core/definition.h"
#include "cuda/cuda.h"
#include "cuda/launch.h"
#include "cuda/merge_tile.h"

namespace lora4j {
namespace {

struct PlainArgs {
  Matrix w;
  Matrix from;
  int32_t* not_finite;
  int64_t count;
  LowRank updates[most_cuda_updates];
};
static_assert(sizeof(PlainArgs) <= 4096, "kernel parameters end at 4 KiB");

constexpr int plain_threads = 256;
constexpr int64_t most_blocks = 1 << 16;

__global__ void __launch_bounds__(plain_threads) merge_plain(const __grid_constant__ PlainArgs args) {
  int64_t total = args.w.rows * args.w.cols;
  int64_t step = static_cast<int64_t>(gridDim.x) * plain_threads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * plain_threads + threadIdx.x; i < total; i += step) {
    int64_t row = i / args.w.cols;
    int64_t col = i % args.w.cols;
    args.w.set(row, col, merged_element(args.from, args.updates, args.count, row, col));
    if (args.not_finite && not_finite(args.w.at(row, col))) *args.not_finite = 1;
  }
}

struct Update {
  Factor a;
  Factor b;
  int32_t rank;
  float scale;
};

struct TiledArgs {
  Matrix w;
  Matrix from;
  int32_t* not_finite;
  int32_t count;
  int32_t col_tiles;
  Update updates[most_cuda_updates];
};
static_assert(sizeof(TiledArgs) <= 4096, "kernel parameters end at 4 KiB");

// Position in the sequence of all slices of all updates.
struct Cursor {
  int update;
  int first;

  __device__ __forceinline__ int ranks(const TiledArgs& args) const {
    return min(args.updates[update].rank - first, merge_slice);
  }
  __device__ __forceinline__ bool last_of_update(const TiledArgs& args) const {
    return first + merge_slice >= args.updates[update].rank;
  }
  __device__ __forceinline__ Cursor next(const TiledArgs& args) const {
    return last_of_update(args) ? Cursor{update + 1, 0} : Cursor{update, first + merge_slice};
  }
};

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
    fetch<merge_tile_cols>(update.a, {at.first, ranks, first_col, args.w.cols}, a_raw);
    fetch<merge_tile_rows>(update.b, {at.first, ranks, first_row, args.w.rows}, b_raw);
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
      rows[i].set(merged);
      bad |= rows[i].write(args.w, row + i, first_col, own.col_group);
    } else {
      rows[0].set(value[i]);
      bad |= rows[0].write(args.w, row + i, first_col, own.col_group);
    }
  }
  if (bad && args.not_finite) *args.not_finite = 1;
}

bool in_pieces(const Matrix& m) {
  int64_t elements = 16 / size_of(m.type);
  return m.col_stride == 1 && m.cols % elements == 0 && (m.rows == 1 || m.row_stride % elements == 0) &&
         reinterpret_cast<uintptr_t>(m.data) % 16 == 0;
}

template <DType type>
void launch_tiled(const TiledArgs& args, unsigned tiles, cudaStream_t stream) {
  bool wide = in_pieces(args.w) && in_pieces(args.from);
  if (args.count == 1 && wide) {
    merge_tiled<type, true, true><<<tiles, merge_threads, 0, stream>>>(args);
  } else if (wide) {
    merge_tiled<type, true, false><<<tiles, merge_threads, 0, stream>>>(args);
  } else {
    merge_tiled<type, false, false><<<tiles, merge_threads, 0, stream>>>(args);
  }
}

// Queues the tiled variant; false if only the plain one takes the arguments.
bool merge_in_tiles(const Matrix& w, const Matrix& from, const LowRank* updates, const MergeParams& params,
                    cudaStream_t stream) {
  int64_t col_tiles = (w.cols + merge_tile_cols - 1) / merge_tile_cols;
  int64_t row_tiles = (w.rows + merge_tile_rows - 1) / merge_tile_rows;
  if (params.count == 0 || col_tiles > INT_MAX / row_tiles) return false;
  TiledArgs args = {};
  args.w = w;
  args.from = from;
  args.not_finite = params.not_finite;
  args.count = static_cast<int32_t>(params.count);
  args.col_tiles = static_cast<int32_t>(col_tiles);
  for (int64_t u = 0; u < params.count; u++) {
    if (updates[u].rank() > INT_MAX - merge_slice) return false;
    args.updates[u] = {factor_of(updates[u].a, true), factor_of(updates[u].b, false),
                       static_cast<int32_t>(updates[u].rank()), updates[u].scale};
  }
  unsigned tiles = static_cast<unsigned>(col_tiles * row_tiles);
  if (w.type == DType::f32) {
    launch_tiled<DType::f32>(args, tiles, stream);
  } else if (w.type == DType::bf16) {
    launch_tiled<DType::bf16>(args, tiles, stream);
  } else {
    launch_tiled<DType::f16>(args, tiles, stream);
  }
  return true;
}

}  // namespace

int merge_cuda(const MergeParams& params, const Place& place) {
  DeviceScope device(place.ordinal);
  if (device.error()) return device.error();
  cudaStream_t stream = static_cast<cudaStream_t>(place.stream);
  bool by_row = params.w.col_stride <= params.w.row_stride;
  PlainArgs args = {};
  args.w = by_row ? params.w : params.w.transposed();
  args.from = by_row ? params.from : params.from.transposed();
  args.not_finite = params.not_finite;
  args.count = params.count;
  for (int64_t u = 0; u < params.count; u++) {
    const LowRank& update = params.updates[u];
    args.updates[u] = by_row ? update : LowRank{update.b.transposed(), update.a.transposed(), update.scale};
  }
  const char* plain = std::getenv("LORA4J_CUDA_PLAIN");
  if ((plain && *plain == '1') || !merge_in_tiles(args.w, args.from, args.updates, params, stream)) {
    int64_t blocks = (params.w.rows * params.w.cols + plain_threads - 1) / plain_threads;
    if (blocks > most_blocks) blocks = most_blocks;
    merge_plain<<<static_cast<unsigned>(blocks), plain_threads, 0, stream>>>(args);
  }
  return cudaGetLastError();
}

const char* cuda_error_name(int error) { return cudaGetErrorString(static_cast<cudaError_t>(error)); }

}  // namespace lora4j
