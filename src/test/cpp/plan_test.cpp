// The index arithmetic of the CUDA kernels: every element has one owner and one place, and reads meet no bank conflicts.
#include <set>

#include "check.h"
#include "cuda/merge_plan.h"
#include "cuda/update_plan.h"

namespace {

using namespace lora4j;

constexpr int banks = 32;

// Each element of a slice has a place of its own inside the row, chunks are aligned to 16 bytes, and a thread's two
// chunks are where it looks for its columns.
template <int width, bool split>
void slice_layout() {
  using Layout = SliceLayout<width, split>;
  std::set<int> places;
  for (int j = 0; j < width; j++) {
    int at = Layout::element(j);
    CHECK(at >= 0 && at < Layout::stride && places.insert(at).second, "element %d at %d", j, at);
    CHECK(Layout::chunk(j / 4) % 4 == 0 && Layout::stride % 4 == 0, "element %d", j);
  }
  std::set<int> owned;
  for (int group = 0; group < width / 8; group++) {
    for (int e = 0; e < 8; e++) {
      int column = Layout::column(group, e);
      CHECK(owned.insert(column).second && column >= 0 && column < width, "group %d, element %d", group, e);
      CHECK(Layout::element(column) == e / 4 * Layout::second + group * 4 + e % 4, "group %d, element %d", group, e);
    }
  }
  // Pieces of four neighbouring columns, as float32 factors are filled: eight lanes, all banks.
  for (int first = 0; first + 8 <= width / 4; first += 8) {
    std::set<int> used;
    for (int q = first; q < first + 8; q++) used.insert(Layout::chunk(q) % banks / 4);
    CHECK(used.size() == 8, "chunks from %d share banks", first);
  }
  // One element of neighbouring columns, as factors are transposed: 32 lanes, all banks.
  for (int first = 0; first < width; first += banks) {
    std::set<int> used;
    for (int j = first; j < first + banks; j++) used.insert(Layout::element(j) % banks);
    CHECK(used.size() == banks, "columns from %d share banks", first);
  }
}

void thread_tiles() {
  std::set<std::pair<int, int>> owned;
  for (int thread = 0; thread < merge_threads; thread++) {
    ThreadTile tile = ThreadTile::of(thread);
    CHECK(tile.row_group >= 0 && tile.row_group < merge_tile_rows / 8, "thread %d", thread);
    CHECK(tile.col_group >= 0 && tile.col_group < merge_tile_cols / 8, "thread %d", thread);
    CHECK(owned.insert({tile.row_group, tile.col_group}).second, "thread %d", thread);
  }
  CHECK(owned.size() * 64 == merge_tile_rows * merge_tile_cols, "all elements");
  // The chunks that a warp reads at once are neighbours: eight of the one factor, four of the other.
  for (int warp = 0; warp < merge_threads / 32; warp++) {
    std::set<int> rows, cols;
    for (int lane = 0; lane < 32; lane++) {
      rows.insert(ThreadTile::of(warp * 32 + lane).row_group);
      cols.insert(ThreadTile::of(warp * 32 + lane).col_group);
    }
    CHECK(rows.size() == 4 && *rows.rbegin() - *rows.begin() == 3, "warp %d", warp);
    CHECK(cols.size() == 8 && *cols.rbegin() - *cols.begin() == 7, "warp %d", warp);
  }
}

void pieces(int width, int elements) {
  for (bool across : {true, false}) {
    std::set<std::pair<int, int>> seen;
    for (int number = 0; number < merge_slice * width / elements; number++) {
      Piece piece = across ? Piece::across(number, width, elements) : Piece::down(number, width, elements);
      for (int e = 0; e < elements; e++) {
        int k = piece.k + (across ? 0 : e), j = piece.j + (across ? e : 0);
        CHECK(k < merge_slice && j < width && seen.insert({k, j}).second, "piece %d of %d", number, width);
      }
    }
    CHECK(seen.size() == static_cast<size_t>(merge_slice * width), "all of %d", width);
  }
}

// Reading 16 bytes at once needs whole, aligned pieces inside the factor.
void reaches() {
  alignas(16) static char memory[64];
  auto reach = [](void* data, int64_t rows, int64_t cols, int64_t row, int64_t col, DType type, bool ranks_are_rows) {
    return factor_of({data, rows, cols, row, col, type}, ranks_are_rows).reach;
  };
  CHECK(reach(memory, 16, 64, 64, 1, DType::bf16, true) == Reach::across, "a");
  CHECK(reach(memory, 64, 16, 16, 1, DType::bf16, false) == Reach::down, "b");
  CHECK(reach(memory, 64, 16, 1, 64, DType::f16, false) == Reach::across, "b, transposed");
  CHECK(reach(memory, 16, 64, 1, 16, DType::f32, true) == Reach::down, "a, transposed");
  CHECK(reach(memory, 64, 12, 12, 1, DType::f32, false) == Reach::down, "rank 12 of float32");
  CHECK(reach(memory, 64, 12, 12, 1, DType::bf16, false) == Reach::gather, "rank 12 of bfloat16");
  CHECK(reach(memory, 64, 12, 16, 1, DType::bf16, false) == Reach::gather, "rank 12 in rows of 16");
  CHECK(reach(memory + 2, 16, 64, 64, 1, DType::bf16, true) == Reach::gather, "an address off by an element");
  CHECK(reach(memory, 16, 60, 64, 1, DType::bf16, true) == Reach::gather, "60 columns");
  CHECK(reach(memory, 16, 64, 60, 1, DType::bf16, true) == Reach::gather, "rows 60 apart");
  CHECK(reach(memory, 1, 64, 3, 1, DType::bf16, true) == Reach::across, "one rank, whatever the stride");
  CHECK(reach(memory, 16, 64, 128, 2, DType::bf16, true) == Reach::gather, "columns apart");
  Factor b = factor_of({memory, 64, 16, 16, 1, DType::bf16}, false);
  CHECK(b.k_stride == 1 && b.j_stride == 16, "b's strides");
}

void product_owners() {
  std::set<std::pair<int, int>> owned;
  for (int thread = 0; thread < update_threads; thread++) {
    ProductOwner own = ProductOwner::of(thread);
    CHECK(own.lane == thread % 8, "thread %d", thread);
    CHECK(own.rank / 4 == ProductOwner::of(thread / 32 * 32).rank / 4, "a warp's ranks are four neighbours");
    CHECK(own.row == ProductOwner::of(thread / 32 * 32).row, "a warp has one row");
    for (int row = own.row; row < most_group_rows; row += ProductOwner::rows_apart) {
      if (own.lane == 0) CHECK(owned.insert({own.rank, row}).second, "thread %d", thread);
    }
  }
  CHECK(owned.size() == update_pass_ranks * most_group_rows, "all products of a pass");
  std::set<int> used;
  for (int rank = 0; rank < 4; rank++) {
    for (int lane = 0; lane < 8; lane++) used.insert((rank * update_chunk_stride / 4 + lane) % banks);
  }
  CHECK(used.size() == banks, "four ranks' pairs share banks");
}

// Every row with an adapter is in one group of that adapter, in its order; groups keep to the limit.
void batch(const std::vector<int32_t>& rows, int most) {
  int64_t total = static_cast<int64_t>(rows.size());
  std::vector<int> times(rows.size());
  for (int64_t t = 0; t < total;) {
    BatchPlan plan;
    int64_t next = plan.take(rows.data(), t, total);
    CHECK(next > t && next <= total, "row %ld", t);
    plan.cut(most);
    int grouped = 0;
    for (int g = 0; g < plan.groups; g++) {
      CHECK(plan.group[g].rows >= 1 && plan.group[g].rows <= most && plan.group[g].first == grouped, "group %d", g);
      for (int i = 0; i < plan.group[g].rows; i++) {
        int32_t row = plan.row[grouped++];
        CHECK(row >= t && row < next && (i == 0 || row > plan.row[grouped - 2]), "row %d", row);
        CHECK(rows[static_cast<size_t>(row)] == plan.adapter[plan.group[g].slot], "row %d", row);
        times[static_cast<size_t>(row)]++;
      }
    }
    CHECK(grouped == plan.rows, "%d rows in groups of %d", plan.rows, most);
    t = next;
  }
  for (size_t t = 0; t < rows.size(); t++) CHECK(times[t] == (rows[t] >= 0), "row %zu: %d times", t, times[t]);
}

void batches() {
  test::Random random(1);
  for (int64_t adapters : {1, 2, 8, 191, 192, 193, 1000, 100000}) {
    for (int64_t count : {1, 2, 16, 511, 512, 513, 2000}) {
      std::vector<int32_t> rows;
      for (int64_t t = 0; t < count; t++) rows.push_back(static_cast<int32_t>(random.below(adapters + 1) - 1));
      for (int most : {1, 3, 8}) batch(rows, most);
    }
  }
  batch(std::vector<int32_t>(600, -1), 4);
  std::vector<int32_t> colliding;
  for (int32_t i = 0; i < 400; i++) colliding.push_back(i % 200 * 512);
  batch(colliding, 8);
}

void shapes() {
  for (int cluster : {1, 8}) {
    for (int64_t rank : {1, 7, 8, 16, 64, 65, 128, 512, 4096, 12288}) {
      for (int rows : {1, 8, 16, 17, 64, 256, 512}) {
        UpdateShape shape = UpdateShape::choose(rows, rank, cluster);
        CHECK(shape.shared <= most_update_shared, "rank %ld, %d rows: %ld bytes", rank, rows, shape.shared);
        CHECK(shape.rows >= 1 && shape.rows <= most_group_rows && shape.pass >= 1, "rank %ld", rank);
        CHECK(shape.v_stride >= rank && shape.v_stride % 4 == 0, "rank %ld", rank);
      }
    }
    for (int groups : {1, 3, 32, 33, 512}) {
      for (int64_t out : {1, 255, 256, 257, 4096, 14336}) {
        int blocks = blocks_for_group(groups, out, cluster);
        CHECK(blocks >= cluster && blocks % cluster == 0 && blocks <= 16 * cluster, "%d groups, %ld", groups, out);
      }
    }
  }
  CHECK(UpdateShape::choose(1, 16, 8).rows == 1 && UpdateShape::choose(64, 16, 8).rows == 4, "rows of a group");
  CHECK(blocks_for_group(1, 4096, 8) == 16 && blocks_for_group(64, 4096, 8) == 8, "blocks of a group");
}

}  // namespace

int main() {
  slice_layout<merge_tile_cols, false>();
  slice_layout<merge_tile_cols, true>();
  slice_layout<merge_tile_rows, false>();
  thread_tiles();
  for (int width : {merge_tile_rows, merge_tile_cols}) {
    for (int elements : {4, 8}) pieces(width, elements);
  }
  reaches();
  product_owners();
  batches();
  shapes();
  return 0;
}
