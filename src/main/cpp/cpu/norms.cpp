// Gram matrices and DoRA's row norms on the CPU. A norm takes one reading of its row of w: its square and its products
// with a, all in double; a block of rows shares what of a is in the cache.
#include <atomic>
#include <vector>

#include "cpu/cpu.h"
#include "cpu/kernels.h"
#include "cpu/thread.h"
#include "cpu/tiles.h"

namespace lora4j {
namespace {

constexpr int64_t block_rows = 16;

// Rows of a matrix as float32: the matrix's own memory where it can be read, else a copy in scratch memory.
struct Rows {
  const float* data;
  int64_t stride;
};

bool readable(const Matrix& m) { return m.type == DType::f32 && (m.cols == 1 || (m.cols > 1 && m.col_stride == 1)); }

// Null data if memory ran out.
Rows rows_of(const Matrix& m, int64_t first, int64_t count, const Elementwise& table, Scratch& scratch) {
  if (readable(m)) return {static_cast<const float*>(m.data) + first * m.row_stride, m.row_stride};
  float* copy = scratch.get(count * m.cols);
  if (copy) load_tile(table, m, first * m.cols, count * m.cols, copy);
  return {copy, m.cols};
}

}  // namespace

bool gram_cpu(const GramParams& params, int threads) {
  const Elementwise& table = elementwise();
  const Matrix& x = params.x;
  const Matrix& y = params.y;
  thread_local Scratch shared;
  Rows right = rows_of(y, 0, y.rows, table, shared);
  if (!right.data && y.rows > 0 && y.cols > 0) return false;
  int64_t blocks = ceil_div(x.rows, block_rows);
  int team = team_size(threads, blocks, static_cast<double>(x.rows * y.rows) * static_cast<double>(x.cols));
  std::atomic<bool> failed{false};
#pragma omp parallel num_threads(team)
  {
    FloatMode mode;
    thread_local Scratch own;
#pragma omp for schedule(dynamic, 1)
    for (int64_t b = 0; b < blocks; b++) {
      int64_t first = b * block_rows;
      int64_t count = x.rows - first < block_rows ? x.rows - first : block_rows;
      Rows left = rows_of(x, first, count, table, own);
      if (!left.data && x.cols > 0) {
        failed = true;
      } else {
        table.double_dots(left.data, left.stride, count, right.data, right.stride, y.rows, x.cols,
                          params.g + first * y.rows, y.rows);
      }
    }
  }
  return !failed;
}

bool row_norms_cpu(const RowNormsParams& params, int threads) {
  const Elementwise& table = elementwise();
  const Matrix& w = params.w;
  const LowRank& update = params.update;
  int64_t rank = update.rank();
  auto ranks = static_cast<size_t>(rank);
  std::vector<double> gram(ranks * ranks);
  if (!gram_cpu({gram.data(), update.a, update.a}, threads)) return false;
  thread_local Scratch shared;
  Rows a = rows_of(update.a, 0, rank, table, shared);
  if (!a.data && w.cols > 0) return false;
  int64_t blocks = ceil_div(w.rows, block_rows);
  int team = team_size(threads, blocks, static_cast<double>(w.rows * (rank + 1)) * static_cast<double>(w.cols));
  std::atomic<bool> failed{false};
#pragma omp parallel num_threads(team)
  {
    FloatMode mode;
    thread_local Scratch own, doubles;
    // Products of a block with a, and a row's b a a^T.
    auto* products = reinterpret_cast<double*>(doubles.get(2 * (block_rows + 1) * rank));
    double* inner = products ? products + block_rows * rank : nullptr;
    if (!products) failed = true;
#pragma omp barrier
    if (!failed) {
#pragma omp for schedule(dynamic, 1)
      for (int64_t block = 0; block < blocks; block++) {
        int64_t first = block * block_rows;
        int64_t count = w.rows - first < block_rows ? w.rows - first : block_rows;
        Rows rows = rows_of(w, first, count, table, own);
        if (!rows.data && w.cols > 0) {
          failed = true;
          continue;
        }
        table.double_dots(rows.data, rows.stride, count, a.data, a.stride, rank, w.cols, products, rank);
        for (int64_t i = 0; i < count; i++) {
          const float* row = rows.data + i * rows.stride;
          double square;
          table.double_dots(row, rows.stride, 1, row, rows.stride, 1, w.cols, &square, 1);
          for (int64_t l = 0; l < rank; l++) inner[l] = 0;
          for (int64_t k = 0; k < rank; k++) {
            auto b = static_cast<double>(update.b.at(first + i, k));
            for (int64_t l = 0; l < rank; l++) inner[l] = inner[l] + b * gram[static_cast<size_t>(k * rank + l)];
          }
          double cross = factor_sum(update.b, first + i, products + i * rank, 1);
          params.norms.set(first + i, 0, norm_of(square, cross, factor_sum(update.b, first + i, inner, 1), update.scale));
        }
      }
    }
  }
  return !failed;
}

}  // namespace lora4j
