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

// Blocks of rows x cols of w; those of one column range follow each other, so that its right panels are packed once.
struct Grid {
  int64_t cols;  // of a block
  int64_t row_blocks;
  int64_t count;
};

Grid grid_for(const MergeParams& params, int64_t tile_cols) {
  int64_t rank = 0;
  for (int64_t u = 0; u < params.count; u++) rank += params.updates[u].rank();
  int64_t cols = panel_floats / (rank > 0 ? rank : 1) / tile_cols * tile_cols;
  cols = cols < tile_cols ? tile_cols : cols > most_cols ? most_cols : cols;
  int64_t row_blocks = ceil_div(params.w.rows, block_rows);
  return {cols, row_blocks, row_blocks * ceil_div(params.w.cols, cols)};
}

// A block of rows of w and where it comes from, element by element where the memory is not contiguous.
template <typename Work>
void for_runs(const Matrix& m, int64_t row, int64_t rows, int64_t col, int64_t cols, Work work) {
  bool contiguous = m.col_stride == 1 || cols == 1;
  for (int64_t i = row; i < row + rows; i++) {
    for (int64_t j = col; j < col + cols; j += contiguous ? cols : 1) work(i, j, contiguous ? cols : 1);
  }
}

char* address(const Matrix& m, int64_t i, int64_t j) {
  return static_cast<char*>(m.data) + (i * m.row_stride + j * m.col_stride) * size_of(m.type);
}

void copy_block(const Matrix& w, const Matrix& from, int64_t row, int64_t rows, int64_t col, int64_t cols) {
  const Matrix& looser = w.col_stride == 1 ? from : w;
  for_runs(looser, row, rows, col, cols, [&](int64_t i, int64_t j, int64_t count) {
    std::memcpy(address(w, i, j), address(from, i, j), static_cast<size_t>(count * size_of(w.type)));
  });
}

bool finite_block(const Matrix& w, int64_t row, int64_t rows, int64_t col, int64_t cols) {
  uint32_t bad = 0;
  const uint16_t exponent = w.type == DType::bf16 ? 0x7f80 : 0x7c00;
  for_runs(w, row, rows, col, cols, [&](int64_t i, int64_t j, int64_t count) {
    const void* run = address(w, i, j);
    if (w.type == DType::f32) {
      for (int64_t n = 0; n < count; n++) bad |= not_finite(static_cast<const float*>(run)[n]);
    } else {
      for (int64_t n = 0; n < count; n++) bad |= (static_cast<const uint16_t*>(run)[n] & exponent) == exponent;
    }
  });
  return bad == 0;
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
    int64_t row = unit % grid_.row_blocks * block_rows;
    int64_t col = unit / grid_.row_blocks * grid_.cols;
    int64_t rows = least(block_rows, params_.w.rows - row);
    int64_t cols = least(grid_.cols, params_.w.cols - col);
    float* left = left_;
    float* right = right_;
    for (int64_t u = 0; u < params_.count; u++) {
      const LowRank& update = params_.updates[u];
      panels_[u] = {left, right, update.rank(), update.scale};
      kernels_.pack_left(update.b, row, rows, left);
      if (col != packed_col_) kernels_.pack_right(update.a, col, cols, right);
      left += update.rank() * block_rows;
      right += update.rank() * grid_.cols;
    }
    packed_col_ = col;
    if (params_.from.data != params_.w.data) copy_block(params_.w, params_.from, row, rows, col, cols);
    if (params_.count > 0) kernels_.block({params_.w, nullptr, row, rows, col, cols, panels_, params_.count});
    return !params_.not_finite || finite_block(params_.w, row, rows, col, cols);
  }

 private:
  static int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

  const MergeParams& params_;
  const Grid& grid_;
  const Kernels& kernels_;
  Panel* panels_ = nullptr;
  float* left_ = nullptr;
  float* right_ = nullptr;
  int64_t packed_col_ = -1;
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
  return run({params.w.transposed(), params.from.transposed(), turned.data(), params.count, params.not_finite}, threads);
}

}  // namespace lora4j
