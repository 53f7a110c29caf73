// Copies between matrices and pages on the CPU: runs within a page and a row of a matrix, whole where both are
// contiguous.
#include <cstring>
#include <vector>

#include "cpu/cpu.h"
#include "cpu/kernels.h"
#include "cpu/thread.h"
#include "cpu/tiles.h"

namespace lora4j {
namespace {

constexpr int64_t piece = 1 << 16;

int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

// Part of a matrix: elements [first, first + count), which begin at element `at` of the list of pages.
struct Part {
  const Matrix* matrix;
  int64_t first;
  int64_t count;
  int64_t at;
};

void copy_run(const Pool& pool, int64_t in_pool, const Matrix& m, int64_t index, int64_t count, bool into_pool) {
  if (m.type == pool.type && (m.col_stride == 1 || count == 1)) {
    char* a = static_cast<char*>(pool.data) + in_pool * size_of(pool.type);
    char* b = static_cast<char*>(m.data) + index * size_of(m.type);
    std::memcpy(into_pool ? a : b, into_pool ? b : a, static_cast<size_t>(count * size_of(m.type)));
    return;
  }
  for (int64_t i = 0; i < count; i++) {
    if (into_pool) {
      copy_element(m.data, index + i * m.col_stride, m.type, pool.data, in_pool + i, pool.type);
    } else {
      copy_element(pool.data, in_pool + i, pool.type, m.data, index + i * m.col_stride, m.type);
    }
  }
}

void copy_part(const PagesParams& params, const Part& part) {
  int64_t size = params.pool.page_size;
  for_pieces(*part.matrix, part.first, part.count, [&](int64_t done, int64_t index, int64_t n) {
    for (int64_t i = 0; i < n;) {
      int64_t at = part.at + done + i;
      int64_t run = least(n - i, size - at % size);
      copy_run(params.pool, pool_index(size, params.pages, at), *part.matrix, index + i * part.matrix->col_stride, run,
               params.into_pool);
      i += run;
    }
  });
}

}  // namespace

void copy_pages_cpu(const PagesParams& params, int threads) {
  std::vector<Part> parts;
  int64_t at = 0;
  for (int64_t i = 0; i < params.count; i++) {
    const Matrix& m = params.matrices[i];
    int64_t elements = m.rows * m.cols;
    for (int64_t first = 0; first < elements; first += piece) {
      parts.push_back({&m, first, least(piece, elements - first), at + first});
    }
    at += elements;
  }
  auto count = static_cast<int64_t>(parts.size());
  int team = team_size(threads, count, static_cast<double>(at));
#pragma omp parallel num_threads(team)
  {
    FloatMode mode;
#pragma omp for schedule(dynamic, 1)
    for (int64_t i = 0; i < count; i++) copy_part(params, parts[static_cast<size_t>(i)]);
  }
}

}  // namespace lora4j
