// The fast merge: the products on tensor cores, in the order of the hardware. Each of a and s b is a sum of bfloat16
// numbers, `pieces` at most, whose products are exact; those too small for the sum are left out:
//
//   w = round(from + sum_i sum_{p + q < pieces} (s_i b_i)_p (a_i)_q),
//
// which is near the definition by about 2^-16 of the update for a w of 16 bits, and 2^-22 for one of 32.
//
// A block owns tiles of w in turn, 128 x 128 or, of float32, 64 x 128. A warp has 64 columns and 16 or 32 rows, in
// products of 16 x 8 x 16, as ldmatrix and mma lay them out: lane 4 g + t has rows g and g + 8 and the columns 2 t and
// 2 t + 1. Four products side by side take their columns such that a lane has eight neighbours of w: position 8 j + 2 t + e
// of 32 is column 8 t + 2 j + e. w is on its way to shared memory, each thread's own pieces, while the tile before is
// written and the products are made.
#pragma once

#include "cuda/merge_tile.h"
#include "cuda/merge_tiled.h"

namespace lora4j {

constexpr int fast_threads = 256;
constexpr int fast_cols = 128;
constexpr int fast_pieces_of_w = 8;  // of 16 bytes, to a thread

template <DType type>
struct FastTile {
  static constexpr int pieces = type == DType::f32 ? 3 : 2;
  static constexpr int row_tiles = type == DType::f32 ? 1 : 2;  // of 16 rows, to a warp
  static constexpr int rows = 64 * row_tiles;
  static constexpr int a_stride = fast_cols + 8;  // numbers to a rank: rows of ldmatrix in distinct banks
  static constexpr int b_stride = rows + 8;
  static constexpr int a_slice = pieces * merge_slice * a_stride;
  static constexpr int b_slice = pieces * merge_slice * b_stride;
  static constexpr int a_raw = merge_slice * fast_cols / 4;  // pieces of 16 bytes of float32
  static constexpr int b_raw = merge_slice * rows / 4;
  static constexpr int shared = 16 * (fast_pieces_of_w * fast_threads + a_raw + b_raw) + 2 * 2 * (a_slice + b_slice);
};

// Where the columns of a tile lie in a slice of a; rows of b lie in order.
template <bool of_a>
L4_HD constexpr int fast_place(int j) {
  return of_a ? j / 32 * 32 + j % 8 / 2 * 8 + j % 32 / 8 * 2 + j % 2 : j;
}

// How many bfloat16 numbers make up those of a factor, times a power of two or not.
L4_HD inline int pieces_in(DType type, bool exact_scale, int most) {
  if (!exact_scale || type == DType::f32) return most;
  return type == DType::bf16 ? 1 : 2;
}

L4_HD inline bool power_of_two(float scale) { return (bits_of(scale) & 0x7fffffu) == 0; }

// Piece `first` of two numbers as words of bfloat16, and what is left of them.
L4_DEVICE uint32_t cut(float& low, float& high) {
  uint32_t a = __float_as_uint(low) & 0xffff0000u, b = __float_as_uint(high) & 0xffff0000u;
  low -= __uint_as_float(a);
  high -= __uint_as_float(b);
  return a >> 16 | b;
}

// Stores two neighbours across, j even, in all pieces of a slice.
template <int width, int stride, bool of_a, int pieces>
L4_DEVICE void store_pieces(uint16_t* slice, int k, int j, float low, float high, int count) {
  uint32_t* to = reinterpret_cast<uint32_t*>(slice + k * stride + fast_place<of_a>(j));
#pragma unroll
  for (int p = 0; p < pieces; p++) {
    if (p < count) to[p * merge_slice * stride / 2] = p < pieces - 1 ? cut(low, high) : round_pair<DType::bf16>(low, high);
  }
}

// Turns the thread's own pieces of 16 bytes, once they are there, into bfloat16 in a slice; ranks that are missing are 0.
template <int width, int stride, bool of_a, int pieces>
L4_DEVICE void split(const Factor& factor, const SliceAt& at, const uint4* raw, float scale, int count, uint16_t* slice) {
  if (at.ranks < merge_slice) {
    for (int i = static_cast<int>(threadIdx.x); i < (merge_slice - at.ranks) * width / 2; i += fast_threads) {
      store_pieces<width, stride, of_a, pieces>(slice, at.ranks + i / (width / 2), i % (width / 2) * 2, 0.0f, 0.0f, count);
    }
  }
  if (factor.reach == Reach::across) {
    with_type(factor.type, [&](auto type) {
      constexpr int elements = decltype(type)::in_16_bytes;
      for_pieces<width, elements, fast_threads>(factor.reach, at, [&](int number, const Piece& piece) {
        float value[elements];
        widen_all<decltype(type)::value>(raw[number], value);
#pragma unroll
        for (int e = 0; e < elements; e += 2) {
          store_pieces<width, stride, of_a, pieces>(slice, piece.k, piece.j + e, scale * value[e], scale * value[e + 1], count);
        }
      });
    });
    return;
  }
  auto one = [&](int k, int j, float value) {
    uint16_t* to = slice + k * stride + fast_place<of_a>(j);
    float none = 0.0f;
#pragma unroll
    for (int p = 0; p < pieces; p++) {
      if (p >= count) break;
      uint32_t word = p < pieces - 1 ? cut(value, none) : round_pair<DType::bf16>(value, none);
      to[p * merge_slice * stride] = static_cast<uint16_t>(word);
    }
  };
  if (factor.reach == Reach::down) {
    with_type(factor.type, [&](auto type) {
      constexpr int elements = decltype(type)::in_16_bytes;
      for_pieces<width, elements, fast_threads>(factor.reach, at, [&](int number, const Piece& piece) {
        float value[elements];
        widen_all<decltype(type)::value>(raw[number], value);
#pragma unroll
        for (int e = 0; e < elements; e++) one(piece.k + e, piece.j, scale * value[e]);
      });
    });
    return;
  }
  bool down = factor.k_stride == 1;
  for (int i = static_cast<int>(threadIdx.x); i < merge_slice * width; i += fast_threads) {
    int k = down ? i % merge_slice : i / width;
    int j = down ? i / merge_slice : i % width;
    if (k < at.ranks && at.j + j < at.size) one(k, j, scale * factor.at(at.k + k, at.j + j));
  }
}

// What a thread has of a tile.
template <DType type>
struct FastThread {
  using Tile = FastTile<type>;
  static constexpr int parts = type == DType::f32 ? 2 : 1;  // pieces of 16 bytes to eight columns
  static constexpr int elements = 8 / parts;

  int lane, warp_row, warp_col;

  L4_DEVICE static FastThread of(int thread) {
    return {thread % 32, thread / 64 * 16 * Tile::row_tiles, thread / 32 % 2 * 64};
  }
  // Row i of 2 * row_tiles, and the first column of piece p of 2 * parts.
  L4_DEVICE int row(int i) const { return warp_row + i / 2 * 16 + i % 2 * 8 + lane / 4; }
  L4_DEVICE int col(int p) const { return warp_col + p / parts * 32 + lane % 4 * 8 + p % parts * elements; }

  // sum += (s b) a over the ranks of a slice.
  L4_DEVICE void multiply(const uint16_t* a, const uint16_t* b, int a_pieces, int b_pieces,
                          float (&sum)[Tile::row_tiles][8][4]) const {
    const uint16_t* a_row = a + (lane % 16) * Tile::a_stride + warp_col + lane / 16 * 8;
    const uint16_t* b_row = b + (lane % 8 + lane / 16 * 8) * Tile::b_stride + warp_row + lane / 8 % 2 * 8;
#pragma unroll 1
    for (int p = 0; p < b_pieces; p++) {
      uint32_t left[Tile::row_tiles][4];
#pragma unroll
      for (int m = 0; m < Tile::row_tiles; m++) {
        load_transposed(left[m], b_row + p * merge_slice * Tile::b_stride + m * 16);
      }
#pragma unroll 1
      for (int q = 0; q < a_pieces && q + p < Tile::pieces; q++) {
#pragma unroll
        for (int n = 0; n < 4; n++) {
          uint32_t right[4];
          load_transposed(right, a_row + q * merge_slice * Tile::a_stride + n * 16);
#pragma unroll
          for (int m = 0; m < Tile::row_tiles; m++) {
            multiply_add(sum[m][2 * n], left[m], right[0], right[1]);
            multiply_add(sum[m][2 * n + 1], left[m], right[2], right[3]);
          }
        }
      }
    }
  }
};

template <DType type, bool wide>
__global__ void __launch_bounds__(fast_threads, wide ? 2 : 1) merge_fast(const __grid_constant__ TiledArgs args) {
  using Tile = FastTile<type>;
  using Thread = FastThread<type>;
  const Thread own = Thread::of(static_cast<int>(threadIdx.x));
  uint4* w_raw = reinterpret_cast<uint4*>(dynamic_shared()) + threadIdx.x;
  uint4* a_raw = reinterpret_cast<uint4*>(dynamic_shared()) + fast_pieces_of_w * fast_threads;
  uint4* b_raw = a_raw + Tile::a_raw;
  uint16_t* slices = reinterpret_cast<uint16_t*>(b_raw + Tile::b_raw);

  auto a_pieces = [&](const Cursor& at) { return pieces_in(args.updates[at.update].a.type, true, Tile::pieces); };
  auto b_pieces = [&](const Cursor& at) {
    const Update& update = args.updates[at.update];
    return pieces_in(update.b.type, power_of_two(update.scale), Tile::pieces);
  };
  auto first_row = [&](uint32_t tile) {
    return static_cast<int64_t>(tile / static_cast<uint32_t>(args.col_tiles)) * Tile::rows;
  };
  auto first_col = [&](uint32_t tile) {
    return static_cast<int64_t>(tile % static_cast<uint32_t>(args.col_tiles)) * fast_cols;
  };
  auto address = [&](const Matrix& m, int64_t row, int64_t col) {
    return static_cast<char*>(m.data) + (row * m.row_stride + col) * Type<type>::bytes;
  };
  // Calls work(index, row of the thread, piece, row of w, column of w) for the thread's pieces inside w.
  auto for_own = [&](uint32_t tile, auto work) {
#pragma unroll
    for (int i = 0; i < 2 * Tile::row_tiles; i++) {
#pragma unroll
      for (int p = 0; p < 2 * Thread::parts; p++) {
        int64_t row = first_row(tile) + own.row(i), col = first_col(tile) + own.col(p);
        if (row < args.w.rows && col < args.w.cols) work(i * 2 * Thread::parts + p, i, p, row, col);
      }
    }
  };
  auto queue_w = [&](uint32_t tile) {
    if constexpr (wide) {
      for_own(tile, [&](int index, int, int, int64_t row, int64_t col) {
        copy_async(w_raw + index * fast_threads, address(args.from, row, col));
      });
    }
    commit_copies();
  };
  auto start = [&](uint32_t tile, const Cursor& at) {
    const Update& update = args.updates[at.update];
    int ranks = at.ranks(args);
    fetch<fast_cols, fast_threads>(update.a, {at.first, ranks, first_col(tile), args.w.cols}, a_raw);
    fetch<Tile::rows, fast_threads>(update.b, {at.first, ranks, first_row(tile), args.w.rows}, b_raw);
    commit_copies();
  };
  auto finish = [&](uint32_t tile, const Cursor& at, int buffer) {
    const Update& update = args.updates[at.update];
    int ranks = at.ranks(args);
    uint16_t* a = slices + buffer * (Tile::a_slice + Tile::b_slice);
    split<fast_cols, Tile::a_stride, true, Tile::pieces>(
        update.a, {at.first, ranks, first_col(tile), args.w.cols}, a_raw, 1.0f, a_pieces(at), a);
    split<Tile::rows, Tile::b_stride, false, Tile::pieces>(
        update.b, {at.first, ranks, first_row(tile), args.w.rows}, b_raw, update.scale, b_pieces(at), a + Tile::a_slice);
    __syncthreads();
  };

  uint32_t tile = blockIdx.x, bad = 0;
  Cursor at = {0, 0};
  float sum[Tile::row_tiles][8][4] = {};
  start(tile, at);
  queue_w(tile);
  wait_copies<1>();
  finish(tile, at, 0);
  for (int buffer = 0;; buffer ^= 1) {
    Cursor next = at.next(args);
    bool last = next.update == args.count;
    if (last) next = {0, 0};
    uint32_t next_tile = last ? tile + gridDim.x : tile;
    bool more = next_tile < args.tiles;
    if (more) start(next_tile, next);
    const uint16_t* a = slices + buffer * (Tile::a_slice + Tile::b_slice);
    own.multiply(a, a + Tile::a_slice, a_pieces(at), b_pieces(at), sum);
    if (last) {
      if (more) {
        wait_copies<1>();
      } else {
        wait_copies<0>();
      }
      for_own(anew(tile), [&](int index, int i, int p, int64_t row, int64_t col) {
        constexpr int elements = Thread::elements;
        float value[elements];
        if constexpr (wide) {
          widen_all<type>(w_raw[index * fast_threads], value);
        } else {
#pragma unroll
          for (int e = 0; e < elements; e++) value[e] = col + e < args.w.cols ? args.from.at(row, col + e) : 0.0f;
        }
#pragma unroll
        for (int e = 0; e < elements; e++) {
          int in_eight = p % Thread::parts * elements + e;
          value[e] += sum[i / 2][p / Thread::parts * 4 + in_eight / 2][i % 2 * 2 + in_eight % 2];
        }
        scale_row(args.factors, row, value);
        uint4 bits = narrow_all<type>(value);
        if constexpr (wide) {
          *reinterpret_cast<uint4*>(address(args.w, row, col)) = bits;
          bad |= not_finite_bits<type>(bits);
        } else {
          widen_all<type>(bits, value);
#pragma unroll
          for (int e = 0; e < elements; e++) {
            if (col + e >= args.w.cols) continue;
            args.w.set(row, col + e, value[e]);
            bad |= not_finite(value[e]);
          }
        }
      });
#pragma unroll
      for (int m = 0; m < Tile::row_tiles; m++) {
#pragma unroll
        for (int n = 0; n < 8; n++) {
#pragma unroll
          for (int e = 0; e < 4; e++) sum[m][n][e] = 0.0f;
        }
      }
      if (!more) break;
      queue_w(anew(next_tile));
      wait_copies<1>();
    } else {
      wait_copies<0>();
    }
    finish(anew(next_tile), next, buffer ^ 1);
    tile = next_tile;
    at = next;
  }
  if (bad && args.not_finite) *args.not_finite = 1;
}

}  // namespace lora4j
