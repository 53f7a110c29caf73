// The CPU kernels, for the instruction set that L4_ISA names. Only names with internal linkage and the one function
// at the end: an inline function shared with other files could be taken from here by the linker, on any CPU.
#include "cpu/kernels.h"

#if L4_ISA == 512
#include "cpu/simd_avx512.h"
#define L4_KERNELS avx512_kernels
#define L4_NAME "avx512"
#elif L4_ISA == 2
#include "cpu/simd_avx2.h"
#define L4_KERNELS avx2_kernels
#define L4_NAME "avx2"
#else
#include "cpu/simd_plain.h"
#define L4_KERNELS plain_kernels
#define L4_NAME "plain"
#endif

#include "cpu/pack.h"

#define L4_UNROLL _Pragma("GCC unroll 16")

namespace lora4j {
namespace {

using V = Simd::V;
constexpr int lane_vectors = dot_lanes / width;

int64_t min_of(int64_t a, int64_t b) { return a < b ? a : b; }

// One register tile of a strip of rows.
struct Tile {
  int64_t row;  // number of the strip
  int64_t col;  // number of the tile in it
  bool direct;  // whole, with contiguous columns in both matrices
  const int64_t* from;  // index of the first element of each row in the source
  const int64_t* to;    // and in the target
  const float* factors;  // of the rows, if they have some and the tile is direct
};

// m rows, tile_cols columns. Values pass through the buffer between panels, and at both ends when the tile is not direct.
template <int m, DType T>
void tile(const Block& block, const Tile& at, float* buffer) {
  for (int64_t u = 0; u < block.panel_count; u++) {
    const Panel& panel = block.panels[u];
    const float* left = panel.left + at.row * panel.rank * tile_rows;
    const float* right = panel.right + at.col * panel.rank * tile_cols;
    bool from_source = at.direct && u == 0;
    bool to_target = at.direct && u == block.panel_count - 1;
    if (from_source) {
      // The tile after the next one, while this one is multiplied.
      const char* ahead = static_cast<const char*>(block.source.data) + 2 * tile_cols * size_of(T);
      constexpr int64_t bytes = tile_cols * (T == DType::f32 ? 4 : 2);
      for (int i = 0; i < m; i++) {
        for (int64_t line = 0; line < bytes; line += 64) __builtin_prefetch(ahead + at.from[i] * size_of(T) + line);
      }
    }
    V sum[m][vectors];
    L4_UNROLL for (int i = 0; i < m; i++) {
      L4_UNROLL for (int n = 0; n < vectors; n++) sum[i][n] = Simd::zero();
    }
    for (int64_t k = 0; k < panel.rank; k++) {
      V a[vectors];
      L4_UNROLL for (int n = 0; n < vectors; n++) a[n] = Simd::load<DType::f32>(right, k * tile_cols + n * width);
      L4_UNROLL for (int i = 0; i < m; i++) {
        V b = Simd::broadcast(left[k * tile_rows + i]);
        L4_UNROLL for (int n = 0; n < vectors; n++) sum[i][n] = Simd::fma(b, a[n], sum[i][n]);
      }
    }
    V scale = Simd::broadcast(panel.scale);
    L4_UNROLL for (int i = 0; i < m; i++) {
      L4_UNROLL for (int n = 0; n < vectors; n += 2) {
        float* kept = buffer + i * tile_cols + n * width;
        V first, second;
        if (from_source) {
          Simd::load_pair<T>(block.source.data, at.from[i] + n * width, first, second);
        } else {
          first = Simd::load<DType::f32>(kept, 0);
          second = Simd::load<DType::f32>(kept, width);
        }
        first = Simd::fma(scale, sum[i][n], first);
        second = Simd::fma(scale, sum[i][n + 1], second);
        if (to_target) {
          if (at.factors) {
            // With -0 for the sum a product keeps the sign of its zero.
            V factor = Simd::broadcast(at.factors[i]), nothing = Simd::broadcast(-0.0f);
            first = Simd::fma(factor, first, nothing);
            second = Simd::fma(factor, second, nothing);
          }
          Simd::store_pair<T>(block.target.data, at.to[i] + n * width, first, second);
        } else {
          Simd::keep(kept, first);
          Simd::keep(kept + width, second);
        }
      }
    }
  }
}

template <DType T>
void tile_of(int64_t rows, const Block& block, const Tile& at, float* buffer) {
  switch (rows) {
    case 1: return tile<1, T>(block, at, buffer);
    case 2: return tile<2, T>(block, at, buffer);
    case 3: return tile<3, T>(block, at, buffer);
    case 4: return tile<4, T>(block, at, buffer);
    case 5: return tile<5, T>(block, at, buffer);
    default: return tile<6, T>(block, at, buffer);
  }
}

// The bits of the largest magnitude: of all types they are in the order of the numbers, infinity and NaN last.
template <typename Bits>
Bits largest(const Bits* data, int64_t count, int64_t stride) {
  constexpr Bits magnitude = static_cast<Bits>(~Bits{0}) >> 1;
  Bits most = 0;
  if (stride == 1) {
    for (int64_t n = 0; n < count; n++) {
      Bits bits = static_cast<Bits>(data[n] & magnitude);
      most = bits > most ? bits : most;
    }
  } else {
    for (int64_t n = 0; n < count; n++) {
      Bits bits = static_cast<Bits>(data[n * stride] & magnitude);
      most = bits > most ? bits : most;
    }
  }
  return most;
}

template <DType T>
bool finite(const Matrix& m, int64_t index, int64_t count) {
  if constexpr (T == DType::f32) {
    return largest(static_cast<const uint32_t*>(m.data) + index, count, m.col_stride) < 0x7f800000u;
  } else if constexpr (T == DType::f8) {
    return largest(static_cast<const uint8_t*>(m.data) + index, count, m.col_stride) < 0x7fu;
  } else {
    return largest(static_cast<const uint16_t*>(m.data) + index, count, m.col_stride) < (T == DType::bf16 ? 0x7f80u : 0x7c00u);
  }
}

template <DType T>
bool block_as(const Block& block) {
  alignas(64) float buffer[tile_rows * tile_cols] = {};
  const Matrix& source = block.source;
  const Matrix& target = block.target;
  // Bytes pass through the buffer, and what has factors for its columns.
  constexpr DType in_tile = T == DType::f8 ? DType::f32 : T;
  const RowFactors& factors = block.factors;
  bool contiguous = source.col_stride == 1 && target.col_stride == 1 && T != DType::f8 && !(factors.data && factors.across);
  bool all_finite = true;
  for (int64_t first = 0; first < block.row_count; first += tile_rows) {
    int64_t rows = min_of(tile_rows, block.row_count - first);
    int64_t from[tile_rows], to[tile_rows];
    for (int64_t i = 0; i < rows; i++) {
      int64_t row = block.row_numbers ? block.row_numbers[first + i] : block.row + first + i;
      from[i] = row * source.row_stride + block.col * source.col_stride;
      to[i] = row * target.row_stride + block.col * target.col_stride;
    }
    for (int64_t j = 0; j < block.col_count && block.panel_count > 0; j += tile_cols) {
      int64_t cols = min_of(tile_cols, block.col_count - j);
      bool direct = contiguous && cols == tile_cols;
      const float* own = direct && factors.data ? factors.data + block.row + first : nullptr;
      Tile at = {first / tile_rows, j / tile_cols, direct, from, to, own};
      if (!at.direct) {
        for (int64_t i = 0; i < rows; i++) {
          for (int64_t n = 0; n < tile_cols; n++) {
            int64_t column = column_at<Simd::interleaved<T>>(n);
            if (column < cols) buffer[i * tile_cols + n] = load(source.data, from[i] + column * source.col_stride, T);
          }
        }
      }
      tile_of<in_tile>(rows, block, at, buffer);
      if (!at.direct) {
        for (int64_t i = 0; i < rows; i++) {
          for (int64_t n = 0; n < tile_cols; n++) {
            int64_t column = column_at<Simd::interleaved<T>>(n);
            if (column >= cols) continue;
            float value = factors.apply(buffer[i * tile_cols + n], block.row + first + i, block.col + j + column);
            store(target.data, to[i] + column * target.col_stride, T, value);
          }
        }
      }
      for (int64_t i = 0; i < rows; i++) {
        from[i] += tile_cols * source.col_stride;
        to[i] += tile_cols * target.col_stride;
      }
    }
    for (int64_t i = 0; i < rows && block.check; i++) {
      int64_t row = block.row + first + i;
      all_finite &= finite<T>(target, row * target.row_stride + block.col * target.col_stride, block.col_count);
    }
  }
  return all_finite;
}

float tree_sum(float* lane) {
  L4_UNROLL for (int64_t half = dot_lanes / 2; half > 0; half /= 2) {
    L4_UNROLL for (int64_t j = 0; j < half; j++) lane[j] += lane[j + half];
  }
  return lane[0];
}

// The last elements of a row, padded with zeros to one per lane.
template <DType T>
void tail_of(const void* data, int64_t index, int64_t count, float* out) {
  for (int64_t j = 0; j < dot_lanes; j++) out[j] = j < count ? load(data, index + j, T) : 0.0f;
}

// Dot products of `ranks` rows of A with `rows` rows of x at once. Each has its own chains, so how many run together
// does not change a bit.
template <int ranks, int rows, DType TA, DType TX>
void dot_tile(const DotBlock& block, int64_t rank, int64_t row) {
  int64_t a_index[ranks];
  int64_t x_index[rows];
  for (int k = 0; k < ranks; k++) a_index[k] = (rank + k) * block.a.row_stride;
  for (int t = 0; t < rows; t++) x_index[t] = block.row_numbers[row + t] * block.x.row_stride;
  V sum[ranks][rows][lane_vectors];
  L4_UNROLL for (int k = 0; k < ranks; k++) {
    L4_UNROLL for (int t = 0; t < rows; t++) {
      L4_UNROLL for (int n = 0; n < lane_vectors; n++) sum[k][t][n] = Simd::zero();
    }
  }
  int64_t cols = block.a.cols;
  int64_t i = 0;
  for (; i + dot_lanes <= cols; i += dot_lanes) {
    L4_UNROLL for (int n = 0; n < lane_vectors; n++) {
      V x[rows];
      L4_UNROLL for (int t = 0; t < rows; t++) x[t] = Simd::load<TX>(block.x.data, x_index[t] + i + n * width);
      L4_UNROLL for (int k = 0; k < ranks; k++) {
        V a = Simd::load<TA>(block.a.data, a_index[k] + i + n * width);
        L4_UNROLL for (int t = 0; t < rows; t++) sum[k][t][n] = Simd::fma(a, x[t], sum[k][t][n]);
      }
    }
  }
  alignas(64) float a_tail[ranks][dot_lanes];
  alignas(64) float x_tail[rows][dot_lanes];
  if (i < cols) {
    for (int k = 0; k < ranks; k++) tail_of<TA>(block.a.data, a_index[k] + i, cols - i, a_tail[k]);
    for (int t = 0; t < rows; t++) tail_of<TX>(block.x.data, x_index[t] + i, cols - i, x_tail[t]);
    L4_UNROLL for (int n = 0; n < lane_vectors; n++) {
      L4_UNROLL for (int k = 0; k < ranks; k++) {
        V a = Simd::load<DType::f32>(a_tail[k], n * width);
        L4_UNROLL for (int t = 0; t < rows; t++) {
          sum[k][t][n] = Simd::fma(a, Simd::load<DType::f32>(x_tail[t], n * width), sum[k][t][n]);
        }
      }
    }
  }
  for (int k = 0; k < ranks; k++) {
    for (int t = 0; t < rows; t++) {
      alignas(64) float lane[dot_lanes];
      L4_UNROLL for (int n = 0; n < lane_vectors; n++) Simd::keep(lane + n * width, sum[k][t][n]);
      int64_t at = row + t;
      block.v[(at / tile_rows * block.a.rows + rank + k) * tile_rows + at % tile_rows] = tree_sum(lane);
    }
  }
}

template <int ranks, DType TA, DType TX>
void dot_rows_as(const DotBlock& block, int64_t rank) {
  int64_t end = block.row + block.row_count;
  int64_t t = block.row;
  for (; t + Simd::dot_rows <= end; t += Simd::dot_rows) dot_tile<ranks, Simd::dot_rows, TA, TX>(block, rank, t);
  for (; t < end; t++) dot_tile<ranks, 1, TA, TX>(block, rank, t);
}

template <DType TA, DType TX>
void dot_as(const DotBlock& block) {
  int64_t end = block.rank + block.rank_count;
  int64_t k = block.rank;
  // One row alone: more ranks at once, for the chains of few wait for themselves.
  constexpr int alone = 2 * Simd::dot_ranks;
  for (; block.row_count == 1 && k + alone <= end; k += alone) dot_tile<alone, 1, TA, TX>(block, k, block.row);
  for (; k + Simd::dot_ranks <= end; k += Simd::dot_ranks) dot_rows_as<Simd::dot_ranks, TA, TX>(block, k);
  for (; k < end; k++) dot_rows_as<1, TA, TX>(block, k);
}

template <DType TA>
void dot_x(const DotBlock& block) {
  switch (block.x.type) {
    case DType::f32: dot_as<TA, DType::f32>(block); break;
    case DType::bf16: dot_as<TA, DType::bf16>(block); break;
    case DType::f16: dot_as<TA, DType::f16>(block); break;
    case DType::f8: break;  // only where a merge stores
  }
}

void dot(const DotBlock& block) {
  switch (block.a.type) {
    case DType::f32: dot_x<DType::f32>(block); break;
    case DType::bf16: dot_x<DType::bf16>(block); break;
    case DType::f16: dot_x<DType::f16>(block); break;
    case DType::f8: break;  // only where a merge stores
  }
}

void pack_left(const Matrix& b, int64_t row, int64_t count, float* out) {
  switch (b.type) {
    case DType::f32: pack_left_as<DType::f32>(b, row, count, out); break;
    case DType::bf16: pack_left_as<DType::bf16>(b, row, count, out); break;
    case DType::f16: pack_left_as<DType::f16>(b, row, count, out); break;
    case DType::f8: break;  // only where a merge stores
  }
}

void pack_right(const Matrix& a, int64_t col, int64_t count, DType target, float* out) {
  switch (a.type) {
    case DType::f32: pack_right_for<DType::f32>(a, col, count, target, out); break;
    case DType::bf16: pack_right_for<DType::bf16>(a, col, count, target, out); break;
    case DType::f16: pack_right_for<DType::f16>(a, col, count, target, out); break;
    case DType::f8: break;  // only where a merge stores
  }
}

bool block(const Block& block) {
  if (block.target.type == DType::f32) return block_as<DType::f32>(block);
  if (block.target.type == DType::bf16) return block_as<DType::bf16>(block);
  if (block.target.type == DType::f8) return block_as<DType::f8>(block);
  return block_as<DType::f16>(block);
}

}  // namespace
}  // namespace lora4j

#include "cpu/attention_kernel.h"
#include "cpu/row_kernel.h"

namespace lora4j {
namespace {

const Kernels table = {L4_NAME, tile_cols, pack_left, pack_right, block, dot, rows, attend};

}  // namespace

const Kernels* L4_KERNELS() { return &table; }

}  // namespace lora4j
