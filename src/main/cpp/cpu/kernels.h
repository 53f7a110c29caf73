// What one instruction set provides: packing, one block of both operations' outer product, and the dot products.
// kernels.cpp is compiled once per instruction set; everything else is compiled once.
#pragma once

#include <cstdint>

#include "core/params.h"

namespace lora4j {

// Rows of a register tile: left factors are packed as [tile][k][tile_rows], right ones as
// [tile][k][tile_cols].
constexpr int64_t tile_rows = 6;

// Chains of a dot product; lane j sums elements j, j + 16, j + 32, ...
constexpr int64_t dot_lanes = 16;

struct Panel {
  const float* left;
  const float* right;
  int64_t rank;
  float scale;
};

// target[rows, cols] = source[rows, cols] + sum over panels of scale * left right, in the order of lora4j.h. The source is
// the target itself or apart from it, of the same type; without panels the target stays as it is. Factors multiply the
// sums of rows without numbers.
struct Block {
  Matrix target;
  Matrix source;
  const int32_t* row_numbers;  // null: rows row .. row + row_count - 1
  int64_t row;
  int64_t row_count;
  int64_t col;
  int64_t col_count;
  const Panel* panels;
  int64_t panel_count;
  RowFactors factors;
  bool check;  // whether to find what is not finite; for rows without numbers
};

// v[t, k] = a[k, :] . x[row_numbers[t], :], for contiguous rows of a and x; v is packed like a left factor.
struct DotBlock {
  Matrix a;
  Matrix x;
  const int32_t* row_numbers;
  int64_t row;  // first t
  int64_t row_count;
  int64_t rank;  // first k
  int64_t rank_count;
  float* v;
};

// y[row_numbers[i], col ...] += scale * b v, for one or two rows: b (out, rank) with contiguous columns for each rank, y
// with contiguous rows, v as DotBlock leaves it.
constexpr int64_t most_rows_unpacked = 2;

struct RowBlock {
  Matrix y;
  Matrix b;
  const int32_t* row_numbers;
  int64_t row_count;
  int64_t col;
  int64_t col_count;
  const float* v;
  float scale;
};

// The query heads of one token that share a key head, over `count` keys of its sequence from `first` on.
struct AttentionUnit {
  Matrix out;
  Matrix query;
  Matrix keys;
  Matrix values;
  const int32_t* pages;  // of the token's sequence
  int64_t token;
  int64_t kv_head;
  int64_t group;  // query heads for each key head
  int64_t head_dim;
  int64_t first;
  int64_t count;
  int64_t page_tokens;
  float scale;
  float* scratch;  // 3 * count floats, aligned to 8 bytes
};

struct Kernels {
  const char* name;
  int64_t tile_cols;
  void (*pack_left)(const Matrix& b, int64_t row, int64_t count, float* out);
  // The order of a packed row's columns depends on the type of the target.
  void (*pack_right)(const Matrix& a, int64_t col, int64_t count, DType target, float* out);
  // False if the check was asked for and an element of the block is not finite.
  bool (*block)(const Block& block);
  void (*dot)(const DotBlock& block);
  void (*rows)(const RowBlock& block);
  void (*attend)(const AttentionUnit& unit);
};

const Kernels* plain_kernels();
const Kernels* avx2_kernels();
const Kernels* avx512_kernels();

// The kernels in use; chosen on first use, changed by set_kernels.
const Kernels& kernels();

// False if this build or CPU lacks the named instruction set; null names the best one.
bool set_kernels(const char* name);

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace lora4j
