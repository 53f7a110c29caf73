// lowRankUpdate on the CPU: rows are grouped by adapter, so that each factor is streamed once per group. First
// v = A x for every group, cut over ranks and rows; then y += s B v, cut over rows and outputs. Bound by reading A and B
// while groups are small: one or two rows use B as it lies, and where such groups are many each is one piece of work.
#include <atomic>
#include <vector>

#include "cpu/cpu.h"
#include "cpu/kernels.h"
#include "cpu/thread.h"

namespace lora4j {
namespace {

constexpr int64_t dot_ranks = 8;
constexpr int64_t block_rows = 16 * tile_rows;
constexpr int64_t panel_floats = 1 << 14;  // of packed B: half of a 128 KiB share of the cache
constexpr int64_t most_cols = 512;
constexpr int64_t least_whole = 8;  // groups, so that threads get equal shares

int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

struct Group {
  const LowRank* adapter;
  Matrix a;    // with contiguous rows
  int64_t row;  // first entry in the sorted row numbers
  int64_t row_count;
  int64_t v;  // offset of its products
  bool unpacked;  // whether B is used as it lies
};

// A piece of one group: [first, first + count) ranks or columns of [row, row + row_count) rows.
struct Unit {
  int64_t group;
  int64_t first;
  int64_t count;
  int64_t row;
  int64_t row_count;
};

struct Plan {
  std::vector<Group> groups;
  std::vector<int32_t> rows;  // sorted by adapter, stable
  std::vector<int64_t> whole;  // groups that are one piece of work
  std::vector<Unit> dots;
  std::vector<Unit> blocks;
  std::vector<std::vector<float>> copies;
  Matrix x;  // with contiguous rows
  int64_t v_floats = 0;
  int64_t pack_floats = 0;
  double work = 0;
};

// The matrix itself if its rows are contiguous, else a float32 copy: the dot products read along rows.
Matrix contiguous_rows(const Matrix& m, Plan& plan) {
  if (m.col_stride == 1 || m.cols <= 1) return {m.data, m.rows, m.cols, m.row_stride, 1, m.type};
  std::vector<float> copy(static_cast<size_t>(m.rows * m.cols));
  for (int64_t i = 0; i < m.rows; i++) {
    for (int64_t j = 0; j < m.cols; j++) copy[static_cast<size_t>(i * m.cols + j)] = m.at(i, j);
  }
  plan.copies.push_back(std::move(copy));
  return {plan.copies.back().data(), m.rows, m.cols, m.cols, 1, DType::f32};
}

void group_rows(const LowRankUpdateParams& params, Plan& plan) {
  std::vector<int64_t> next(static_cast<size_t>(params.count) + 1, 0);
  for (int64_t t = 0; t < params.y.rows; t++) next[static_cast<size_t>(params.rows[t] + 1)]++;
  int64_t start = -next[0];  // rows without an adapter are left out
  for (int64_t a = -1; a < params.count; a++) {
    int64_t size = next[static_cast<size_t>(a + 1)];
    if (a >= 0 && size > 0) plan.groups.push_back({params.adapters + a, {}, start, size, 0, false});
    next[static_cast<size_t>(a + 1)] = start;
    start += size;
  }
  plan.rows.resize(static_cast<size_t>(start));
  for (int64_t t = 0; t < params.y.rows; t++) {
    int32_t a = params.rows[t];
    if (a >= 0) plan.rows[static_cast<size_t>(next[static_cast<size_t>(a + 1)]++)] = static_cast<int32_t>(t);
  }
}

bool fits_unpacked(const Group& group, const Matrix& y) {
  const Matrix& b = group.adapter->b;
  bool any_side = b.row_stride == 1 || b.rows == 1 || b.col_stride == 1 || b.cols == 1;
  return group.row_count <= most_rows_unpacked && any_side && (y.col_stride == 1 || y.cols == 1);
}

Plan plan_for(const LowRankUpdateParams& params, int64_t tile_cols) {
  Plan plan;
  group_rows(params, plan);
  if (plan.groups.empty()) return plan;
  bool many = static_cast<int64_t>(plan.groups.size()) >= least_whole;
  plan.x = contiguous_rows(params.x, plan);
  for (size_t g = 0; g < plan.groups.size(); g++) {
    Group& group = plan.groups[g];
    int64_t rank = group.adapter->rank();
    group.a = contiguous_rows(group.adapter->a, plan);
    group.v = plan.v_floats;
    plan.v_floats += ceil_div(group.row_count, tile_rows) * tile_rows * rank;
    plan.work += static_cast<double>(group.row_count * rank) * static_cast<double>(params.x.cols + params.y.cols);
    group.unpacked = fits_unpacked(group, params.y);
    if (group.unpacked && many) {
      plan.whole.push_back(static_cast<int64_t>(g));
      continue;
    }
    int64_t cols = panel_floats / rank / tile_cols * tile_cols;
    cols = cols < tile_cols ? tile_cols : least(cols, most_cols);
    plan.pack_floats = plan.pack_floats < rank * cols ? rank * cols : plan.pack_floats;
    for (int64_t row = 0; row < group.row_count; row += block_rows) {
      int64_t rows = least(block_rows, group.row_count - row);
      for (int64_t k = 0; k < rank; k += dot_ranks) {
        plan.dots.push_back({static_cast<int64_t>(g), k, least(dot_ranks, rank - k), row, rows});
      }
      for (int64_t j = 0; j < params.y.cols; j += cols) {
        plan.blocks.push_back({static_cast<int64_t>(g), j, least(cols, params.y.cols - j), row, rows});
      }
    }
  }
  return plan;
}

void run_dot(const Plan& plan, const Unit& unit, float* v, const Kernels& table) {
  const Group& group = plan.groups[static_cast<size_t>(unit.group)];
  table.dot({group.a, plan.x, plan.rows.data() + group.row, unit.row, unit.row_count, unit.first, unit.count,
             v + group.v});
}

void run_block(const Plan& plan, const Unit& unit, const Matrix& y, const float* v, float* pack,
               const Kernels& table) {
  const Group& group = plan.groups[static_cast<size_t>(unit.group)];
  int64_t rank = group.adapter->rank();
  if (group.unpacked) {
    table.rows({y, group.adapter->b, plan.rows.data() + group.row, unit.row_count, unit.first, unit.count, v + group.v,
                group.adapter->scale});
    return;
  }
  table.pack_right(group.adapter->b.transposed(), unit.first, unit.count, y.type, pack);
  Panel panel = {v + group.v + unit.row * rank, pack, rank, group.adapter->scale};
  table.block({y, y, plan.rows.data() + group.row + unit.row, 0, unit.row_count, unit.first, unit.count, &panel, 1, {}, false});
}

void run_whole(const Plan& plan, int64_t group, const Matrix& y, float* v, const Kernels& table) {
  const Group& all = plan.groups[static_cast<size_t>(group)];
  run_dot(plan, {group, 0, all.adapter->rank(), 0, all.row_count}, v, table);
  run_block(plan, {group, 0, y.cols, 0, all.row_count}, y, v, nullptr, table);
}

}  // namespace

bool low_rank_update_cpu(const LowRankUpdateParams& params, int threads) {
  const Kernels& table = kernels();
  Plan plan = plan_for(params, table.tile_cols);
  if (plan.groups.empty()) return true;
  thread_local Scratch products;
  float* v = products.get(plan.v_floats);
  if (!v) return false;
  int64_t dots = static_cast<int64_t>(plan.dots.size());
  int64_t blocks = static_cast<int64_t>(plan.blocks.size());
  int64_t whole = static_cast<int64_t>(plan.whole.size());
  int team = team_size(threads, whole + (dots > blocks ? dots : blocks), plan.work);
  std::atomic<bool> failed{false};
#pragma omp parallel num_threads(team)
  {
    FloatMode mode;
    thread_local Scratch packed;
    float* pack = packed.get(plan.pack_floats);
    if (!pack && plan.pack_floats > 0) failed = true;
#pragma omp for schedule(dynamic, 4) nowait
    for (int64_t i = 0; i < whole; i++) run_whole(plan, plan.whole[static_cast<size_t>(i)], params.y, v, table);
#pragma omp for schedule(dynamic, 1)
    for (int64_t i = 0; i < dots; i++) run_dot(plan, plan.dots[static_cast<size_t>(i)], v, table);
    if (!failed) {
#pragma omp for schedule(dynamic, 1)
      for (int64_t i = 0; i < blocks; i++) run_block(plan, plan.blocks[static_cast<size_t>(i)], params.y, v, pack, table);
    }
  }
  return !failed;
}

}  // namespace lora4j
