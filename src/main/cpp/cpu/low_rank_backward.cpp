// The gradients of lowRankUpdate on the CPU, in three steps with rows grouped by adapter: the products u = B^T dy and
// h = A x of every row; both laid out as left factors over rows; then the blocks of dx, dA and dB, all of which are the
// register tiles of merge. The gradient of B is computed transposed, so that all run along rows of x or dy.
#include <atomic>
#include <cstring>
#include <vector>

#include "core/low_rank_backward.h"
#include "cpu/cpu.h"
#include "cpu/groups.h"
#include "cpu/kernels.h"
#include "cpu/thread.h"

namespace lora4j {
namespace {

constexpr int64_t dot_ranks = 8;  // where rows are few
constexpr int64_t dot_rows = 4 * tile_rows;  // of x or dy, which stay in the cache for all ranks
constexpr int64_t block_rows = 16 * tile_rows;
constexpr int64_t gradient_cols = 128;  // of x or dy: a chunk of them as float32 takes 128 KiB
constexpr int64_t panel_floats = 1 << 14;
constexpr int64_t most_cols = 512;

int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

bool wanted(const Matrix& m) { return m.rows > 0 && m.cols > 0; }

// One side of an adapter: products left of rows with a factor, and the gradient they give together with an input.
struct Side {
  Matrix factor;    // (rank, width) with contiguous rows
  const Matrix* input;  // (T, width), whose rows the factor multiplies
  int64_t products;  // offset: packed for rows in tiles, [tile][rank][tile_rows]
  int64_t chunks;    // offset: packed for ranks in tiles, a chunk of rows after the other
};

struct Group {
  const LowRank* adapter;
  const Gradient* gradient;
  int64_t row;
  int64_t row_count;
  Side in;   // h = A x, for the gradient of B
  Side out;  // u = B^T dy, for dx and the gradient of A
  bool needs_u;
  bool needs_h;
};

enum class Work { dot_u, dot_h, load_h, chunk_u, chunk_h, dx, da, db };

struct Unit {
  Work work;
  int64_t group;
  int64_t first;  // rank or column
  int64_t count;
  int64_t row;
  int64_t row_count;
};

int64_t padded(int64_t n, int64_t to) { return ceil_div(n, to) * to; }

class Backward {
 public:
  explicit Backward(const LowRankBackwardParams& params)
      : params_(params), table_(kernels()), rows_(group_rows(params.rows, params.dy.rows, params.count)) {
    if (rows_.groups.empty()) return;
    x_ = contiguous_rows(params.x);
    dy_ = contiguous_rows(params.dy);
    for (const RowGroup& rows : rows_.groups) add(rows);
    for (size_t g = 0; g < groups_.size(); g++) plan(static_cast<int64_t>(g));
  }

  bool run(int threads) {
    if (groups_.empty()) return true;
    thread_local Scratch memory;
    float* products = memory.get(floats_);
    if (!products) return false;
    products_ = products;
    int64_t units = static_cast<int64_t>(steps_[0].size());
    for (const std::vector<Unit>& step : steps_) units = std::max(units, static_cast<int64_t>(step.size()));
    int team = team_size(threads, units, work_);
    std::atomic<bool> failed{false};
#pragma omp parallel num_threads(team)
    {
      FloatMode mode;
      thread_local Scratch panels, sums, gathered;
      float* panel = panels.get(std::max(panel_floats_, gradient_chunk * padded(gradient_cols, table_.tile_cols)));
      float* sum = sums.get(most_rank_ * padded(gradient_cols, table_.tile_cols));
      float* gather = gathered.get(gradient_chunk * gradient_cols);
      if (!panel || !sum || !gather) failed = true;
#pragma omp barrier
      if (!failed) {
        for (const std::vector<Unit>& step : steps_) {
#pragma omp for schedule(dynamic, 1)
          for (int64_t i = 0; i < static_cast<int64_t>(step.size()); i++) {
            run_unit(step[static_cast<size_t>(i)], panel, sum, gather);
          }
        }
      }
    }
    return !failed;
  }

 private:
  // The matrix itself if its rows are contiguous, else a float32 copy.
  Matrix contiguous_rows(const Matrix& m) {
    if (m.col_stride == 1 || m.cols <= 1) return {m.data, m.rows, m.cols, m.row_stride, 1, m.type};
    std::vector<float> copy(static_cast<size_t>(m.rows * m.cols));
    constexpr int64_t side = 32;  // transposed by squares, for the caches
    for (int64_t i0 = 0; i0 < m.rows; i0 += side) {
      for (int64_t j0 = 0; j0 < m.cols; j0 += side) {
        for (int64_t i = i0; i < least(i0 + side, m.rows); i++) {
          for (int64_t j = j0; j < least(j0 + side, m.cols); j++) copy[static_cast<size_t>(i * m.cols + j)] = m.at(i, j);
        }
      }
    }
    copies_.push_back(std::move(copy));
    return {copies_.back().data(), m.rows, m.cols, m.cols, 1, DType::f32};
  }

  void add(const RowGroup& rows) {
    Group group = {params_.adapters + rows.adapter, params_.gradients + rows.adapter, rows.row, rows.row_count, {}, {},
                   false, false};
    int64_t rank = group.adapter->rank();
    group.needs_u = wanted(params_.dx) || wanted(group.gradient->a);
    group.needs_h = wanted(group.gradient->b);
    if (group.needs_u) group.out.factor = contiguous_rows(group.adapter->b.transposed());
    if (group.needs_h && !wanted(params_.h)) group.in.factor = contiguous_rows(group.adapter->a);
    group.out.input = &dy_;
    group.in.input = &x_;
    for (Side* side : {&group.in, &group.out}) {
      side->products = floats_;
      floats_ += padded(group.row_count, tile_rows) * rank;
      side->chunks = floats_;
      floats_ += group.row_count * padded(rank, tile_rows);
    }
    most_rank_ = std::max(most_rank_, padded(rank, tile_rows));
    groups_.push_back(group);
  }

  void plan(int64_t g) {
    const Group& group = groups_[static_cast<size_t>(g)];
    int64_t rank = group.adapter->rank();
    int64_t in = group.adapter->a.cols;
    int64_t out = group.adapter->b.rows;
    int64_t cols = least(panel_floats / rank / table_.tile_cols * table_.tile_cols, most_cols);
    cols = std::max(cols, table_.tile_cols);
    panel_floats_ = std::max(panel_floats_, rank * cols);
    Work work_h = wanted(params_.h) ? Work::load_h : Work::dot_h;
    int64_t unit_ranks = group.row_count > dot_rows ? rank : dot_ranks;
    for (int64_t row = 0; row < group.row_count; row += dot_rows) {
      int64_t count = least(dot_rows, group.row_count - row);
      for (int64_t k = 0; k < rank; k += unit_ranks) {
        int64_t ranks = least(unit_ranks, rank - k);
        if (group.needs_u) steps_[0].push_back({Work::dot_u, g, k, ranks, row, count});
        if (group.needs_h) steps_[0].push_back({work_h, g, k, ranks, row, count});
      }
    }
    for (int64_t row = 0; row < group.row_count && wanted(params_.dx); row += block_rows) {
      int64_t count = least(block_rows, group.row_count - row);
      for (int64_t j = 0; j < in; j += cols) steps_[2].push_back({Work::dx, g, j, least(cols, in - j), row, count});
    }
    for (int64_t row = 0; row < group.row_count; row += gradient_chunk) {
      int64_t count = least(gradient_chunk, group.row_count - row);
      if (wanted(group.gradient->a)) steps_[1].push_back({Work::chunk_u, g, 0, rank, row, count});
      if (wanted(group.gradient->b)) steps_[1].push_back({Work::chunk_h, g, 0, rank, row, count});
    }
    for (int64_t j = 0; j < in && wanted(group.gradient->a); j += gradient_cols) {
      steps_[2].push_back({Work::da, g, j, least(gradient_cols, in - j), 0, group.row_count});
    }
    for (int64_t j = 0; j < out && wanted(group.gradient->b); j += gradient_cols) {
      steps_[2].push_back({Work::db, g, j, least(gradient_cols, out - j), 0, group.row_count});
    }
    work_ += 3.0 * static_cast<double>(group.row_count * rank) * static_cast<double>(in + out);
  }

  void run_unit(const Unit& unit, float* panel, float* sum, float* gather) const {
    const Group& group = groups_[static_cast<size_t>(unit.group)];
    switch (unit.work) {
      case Work::dot_u: dot(group, group.out, unit); break;
      case Work::dot_h: dot(group, group.in, unit); break;
      case Work::load_h: load_h(group, unit); break;
      case Work::chunk_u: lay_out(group, group.out, unit); break;
      case Work::chunk_h: lay_out(group, group.in, unit); break;
      case Work::dx: add_dx(group, unit, panel); break;
      case Work::da: add_gradient(group, group.out, x_, group.gradient->a, unit, panel, sum, gather); break;
      case Work::db: add_gradient(group, group.in, dy_, group.gradient->b.transposed(), unit, panel, sum, gather); break;
    }
  }

  const int32_t* rows_of(const Group& group) const { return rows_.rows.data() + group.row; }

  void dot(const Group& group, const Side& side, const Unit& unit) const {
    table_.dot({side.factor, *side.input, rows_of(group), unit.row, unit.row_count, unit.first, unit.count,
                products_ + side.products});
  }

  float& product(const Group& group, const Side& side, int64_t t, int64_t k) const {
    return products_[side.products + (t / tile_rows * group.adapter->rank() + k) * tile_rows + t % tile_rows];
  }

  void load_h(const Group& group, const Unit& unit) const {
    for (int64_t t = unit.row; t < unit.row + unit.row_count; t++) {
      for (int64_t k = unit.first; k < unit.first + unit.count; k++) {
        product(group, group.in, t, k) = params_.h.at(rows_of(group)[t], k);
      }
    }
  }

  // A chunk of the products, transposed.
  void lay_out(const Group& group, const Side& side, const Unit& unit) const {
    float* to = chunk_at(group, side, unit.row);
    for (int64_t k = 0; k < unit.count; k++) {
      for (int64_t t = 0; t < unit.row_count; t++) {
        to[(k / tile_rows * unit.row_count + t) * tile_rows + k % tile_rows] = product(group, side, unit.row + t, k);
      }
    }
  }

  float* chunk_at(const Group& group, const Side& side, int64_t row) const {
    return products_ + side.chunks + row * padded(group.adapter->rank(), tile_rows);
  }

  void add_dx(const Group& group, const Unit& unit, float* panel) const {
    int64_t rank = group.adapter->rank();
    table_.pack_right(group.adapter->a, unit.first, unit.count, params_.dx.type, panel);
    Panel products = {products_ + group.out.products + unit.row * rank, panel, rank, group.adapter->scale};
    table_.block({params_.dx, params_.dx, rows_of(group) + unit.row, 0, unit.row_count, unit.first, unit.count, &products, 1,
                  {}, false});
  }

  // Columns of gradient (rank, width) += scale * products^T input, a chunk of rows at a time, summed in float32.
  void add_gradient(const Group& group, const Side& side, const Matrix& input, const Matrix& gradient, const Unit& unit,
                    float* panel, float* sum, float* gather) const {
    int64_t rank = gradient.rows;
    int64_t pitch = padded(unit.count, table_.tile_cols);
    Matrix sums = {sum, rank, pitch, pitch, 1, DType::f32};
    for (int64_t k = 0; k < rank; k++) {
      for (int64_t j = 0; j < unit.count; j++) sum[k * pitch + j] = gradient.at(k, unit.first + j);
      for (int64_t j = unit.count; j < pitch; j++) sum[k * pitch + j] = 0.0f;
    }
    for (int64_t row = 0; row < group.row_count; row += gradient_chunk) {
      int64_t count = least(gradient_chunk, group.row_count - row);
      Matrix part = rows_of_input(input, rows_of(group) + row, count, unit, gather);
      table_.pack_right(part, 0, unit.count, DType::f32, panel);
      Panel chunk = {chunk_at(group, side, row), panel, count, group.adapter->scale};
      table_.block({sums, sums, nullptr, 0, rank, 0, pitch, &chunk, 1, {}, false});
    }
    for (int64_t k = 0; k < rank; k++) {
      for (int64_t j = 0; j < unit.count; j++) gradient.set(k, unit.first + j, sum[k * pitch + j]);
    }
  }

  // Some rows and columns of an input: a view if the rows are evenly spaced, else a copy.
  static Matrix rows_of_input(const Matrix& input, const int32_t* rows, int64_t count, const Unit& unit, float* gather) {
    int64_t size = size_of(input.type);
    char* start = static_cast<char*>(input.data) + (rows[0] * input.row_stride + unit.first) * size;
    int64_t step = count > 1 ? rows[1] - rows[0] : 1;
    bool even = true;
    for (int64_t t = 2; t < count && even; t++) even = rows[t] - rows[t - 1] == step;
    if (even) return {start, count, unit.count, step * input.row_stride, 1, input.type};
    char* to = reinterpret_cast<char*>(gather);
    for (int64_t t = 0; t < count; t++) {
      std::memcpy(to + t * unit.count * size, start + (rows[t] - rows[0]) * input.row_stride * size,
                  static_cast<size_t>(unit.count * size));
    }
    return {gather, count, unit.count, unit.count, 1, input.type};
  }

  const LowRankBackwardParams& params_;
  const Kernels& table_;
  RowGroups rows_;
  Matrix x_ = {};
  Matrix dy_ = {};
  std::vector<Group> groups_;
  std::vector<Unit> steps_[3];  // each needs the one before
  std::vector<std::vector<float>> copies_;
  float* products_ = nullptr;
  int64_t floats_ = 0;
  int64_t panel_floats_ = 0;
  int64_t most_rank_ = 0;
  double work_ = 0;
};

}  // namespace

bool low_rank_backward_cpu(const LowRankBackwardParams& params, int threads) { return Backward(params).run(threads); }

}  // namespace lora4j
