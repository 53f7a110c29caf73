// How a merge is cut into tiles and a tile's factors are laid out in shared memory; plain arithmetic, tested on the CPU.
//
// A tile is 64 x 128 elements of w, owned by 128 threads, 8 x 8 elements to each. A factor passes through shared memory
// in slices of 16 ranks, as rows of float32 that are cut into chunks of four. A thread reads two chunks of a row: the
// two halves of its eight columns (or, split, four columns in each half of the tile). The first chunks of all threads
// lie together, and the second ones after them, sixteen banks further, so that neither reading nor filling meets
// bank conflicts.
#pragma once

#include "core/params.h"

namespace lora4j {

constexpr int merge_threads = 128;
constexpr int merge_tile_rows = 64;
constexpr int merge_tile_cols = 128;
constexpr int merge_slice = 16;

// A slice of one factor: `width` elements across, from chunk numbers to places in a row.
template <int width, bool split>
struct SliceLayout {
  static constexpr int second = width / 2 + 16;
  static constexpr int stride = second + width / 2;  // floats to a row
  static constexpr int groups = width / 8;           // threads across

  L4_HD static constexpr int chunk(int q) {
    return split ? q / groups * second + q % groups * 4 : q % 2 * second + q / 2 * 4;
  }
  L4_HD static constexpr int element(int j) { return chunk(j / 4) + j % 4; }

  // The column of the tile that element e of eight of a thread's group is.
  L4_HD static constexpr int column(int group, int e) {
    return split ? e / 4 * (width / 2) + group * 4 + e % 4 : group * 8 + e;
  }
};

// Where a thread's eight rows and eight columns are: a warp covers 32 x 64 elements, its lanes 4 x 8 groups.
struct ThreadTile {
  int row_group;  // of 8
  int col_group;  // of 16

  L4_HD static constexpr ThreadTile of(int thread) {
    int warp = thread / 32, lane = thread % 32;
    return {warp / 2 * 4 + lane / 8, warp % 2 * 8 + lane % 8};
  }
};

// A piece of 16 bytes of a slice: its first element, and whether its elements run across ranks.
struct Piece {
  int k;
  int j;

  L4_HD static constexpr Piece across(int number, int width, int elements) {
    return {number / (width / elements), number % (width / elements) * elements};
  }
  L4_HD static constexpr Piece down(int number, int width, int elements) {
    return {number / width * elements, number % width};
  }
};

// How a factor is read: 16 bytes along the tile, 16 bytes along the ranks, or element by element.
enum class Reach : int { across, down, gather };

// A factor of an update, seen from w: element (k, j) for column j (or row j) of w.
struct Factor {
  const void* data;
  int64_t k_stride;
  int64_t j_stride;
  DType type;
  Reach reach;

  L4_HD float at(int64_t k, int64_t j) const { return load(data, k * k_stride + j * j_stride, type); }
};

inline Factor factor_of(const Matrix& m, bool ranks_are_rows) {
  int64_t k_stride = ranks_are_rows ? m.row_stride : m.col_stride;
  int64_t j_stride = ranks_are_rows ? m.col_stride : m.row_stride;
  int64_t ranks = ranks_are_rows ? m.rows : m.cols;
  int64_t size = ranks_are_rows ? m.cols : m.rows;
  int64_t in_16_bytes = 16 / size_of(m.type);
  bool aligned = reinterpret_cast<uintptr_t>(m.data) % 16 == 0;
  Reach reach = Reach::gather;
  if (aligned && j_stride == 1 && size % in_16_bytes == 0 && (ranks == 1 || k_stride % in_16_bytes == 0)) {
    reach = Reach::across;
  } else if (aligned && k_stride == 1 && ranks % in_16_bytes == 0 && (size == 1 || j_stride % in_16_bytes == 0)) {
    reach = Reach::down;
  }
  return {m.data, k_stride, j_stride, m.type, reach};
}

}  // namespace lora4j
