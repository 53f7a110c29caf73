// merge on the CPU: w is cut into blocks; a thread packs the factors of a block as float32 panels and runs register
// tiles over it. Bound by memory up to about rank 16, then by the multiply-adds.
#include <atomic>
#include <cstring>
#include <vector>

#include "cpu/cpu.h"
#include "cpu/kernels.h"
#include "cpu/thread.h"

namespace lora4j {
namespace {

constexpr int64_t block_rows = 32 * tile_rows;
constexpr int64_t panel_floats = 1 << 16;  // of packed right factors: half of a 512 KiB cache
constexpr int64_t most_cols = 1024;

// Blocks of rows x cols of w; those of one row range follow each other, so that its left panels are packed once.
struct Grid {
  int64_t cols;  // of a block
  int64_t col_blocks;
  int64_t count;
};

Grid grid_for(const MergeParams& params, int64_t tile_cols) {
  int64_t rank = 0;
  for (int64_t u = 0; u < params.count; u++) rank += params.updates[u].rank();
  int64_t cols = panel_floats / (rank > 0 ? rank : 1) / tile_cols * tile_cols;
  cols = cols < tile_cols ? tile_cols : cols > most_cols ? most_cols : cols;
  int64_t col_blocks = ceil_div(params.w.cols, cols);
  return {cols, col_blocks, col_blocks * ceil_div(params.w.rows, block_rows)};
}

char* address(const Matrix& m, int64_t i, int64_t j) {
  return static_cast<char*>(m.data) + (i * m.row_stride + j * m.col_stride) * size_of(m.type);
}

void copy_block(const Matrix& w, const Matrix& from, int64_t row, int64_t rows, int64_t col, int64_t cols) {
  bool contiguous = w.col_stride == 1 && from.col_stride == 1;
  for (int64_t i = row; i < row + rows; i++) {
    if (contiguous) std::memcpy(address(w, i, col), address(from, i, col), static_cast<size_t>(cols * size_of(w.type)));
    for (int64_t j = col; j < col + cols && !contiguous; j++) w.copy(i, j, from);
  }
}

class Worker {
 public:
  Worker(const MergeParams& params, const Grid& grid, const Kernels& kernels)
      : params_(params), grid_(grid), kernels_(kernels) {}

  bool reserve() {
    thread_local Scratch panels, left, right;
    int64_t rank = 0;
    for (int64_t u = 0; u < params_.count; u++) rank += params_.updates[u].rank();
    if (rank == 0) return true;
    int64_t list_floats = ceil_div(params_.count * static_cast<int64_t>(sizeof(Panel)), sizeof(float));
    panels_ = reinterpret_cast<Panel*>(panels.get(list_floats));
    left_ = left.get(rank * block_rows);
    right_ = right.get(rank * grid_.cols);
    return panels_ && left_ && right_;
  }

  // False if the check was asked for and a written element is not finite.
  bool run(int64_t unit) {
    int64_t row = unit / grid_.col_blocks * block_rows;
    int64_t col = unit % grid_.col_blocks * grid_.cols;
    int64_t rows = least(block_rows, params_.w.rows - row);
    int64_t cols = least(grid_.cols, params_.w.cols - col);
    float* left = left_;
    float* right = right_;
    for (int64_t u = 0; u < params_.count; u++) {
      const LowRank& update = params_.updates[u];
      panels_[u] = {left, right, update.rank(), update.scale};
      if (row != packed_row_) kernels_.pack_left(update.b, row, rows, left);
      kernels_.pack_right(update.a, col, cols, params_.w.type, right);
      left += update.rank() * block_rows;
      right += update.rank() * grid_.cols;
    }
    packed_row_ = row;
    if (params_.count == 0 && params_.from.data != params_.w.data) copy_block(params_.w, params_.from, row, rows, col, cols);
    return kernels_.block({params_.w, params_.from, nullptr, row, rows, col, cols, panels_, params_.count,
                           params_.factors, params_.not_finite != nullptr});
  }

 private:
  static int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

  const MergeParams& params_;
  const Grid& grid_;
  const Kernels& kernels_;
  Panel* panels_ = nullptr;
  float* left_ = nullptr;
  float* right_ = nullptr;
  int64_t packed_row_ = -1;
};

bool run(const MergeParams& params, int threads) {
  const Kernels& table = kernels();
  Grid grid = grid_for(params, table.tile_cols);
  double work = 0;
  for (int64_t u = 0; u < params.count; u++) work += static_cast<double>(params.updates[u].rank());
  work *= static_cast<double>(params.w.rows) * static_cast<double>(params.w.cols);
  int team = team_size(threads, grid.count, work);
  std::atomic<bool> failed{false};
  std::atomic<bool> finite{true};
#pragma omp parallel num_threads(team)
  {
    FloatMode mode;
    Worker worker(params, grid, table);
    if (!worker.reserve()) failed = true;
#pragma omp barrier
    if (!failed) {
#pragma omp for schedule(dynamic, 1)
      for (int64_t unit = 0; unit < grid.count; unit++) {
        if (!worker.run(unit)) finite = false;
      }
    }
  }
  if (!finite && !failed) *params.not_finite = 1;
  return !failed;
}

}  // namespace

bool merge_cpu(const MergeParams& params, int threads) {
  if (params.w.col_stride == 1 || params.w.row_stride != 1) return run(params, threads);
  // A transposed weight: w' += a' b', the same products in the same order, along contiguous memory.
  std::vector<LowRank> turned(params.updates, params.updates + params.count);
  for (LowRank& update : turned) update = {update.b.transposed(), update.a.transposed(), update.scale};
  return run({params.w.transposed(), params.from.transposed(), turned.data(), params.count, params.factors.turned(),
              params.not_finite, false}, threads);
}

}  // namespace lora4j
