// l4_scatter and l4_gather: their checks and their dispatch.
#include "core/pages.h"

#include <algorithm>
#include <vector>

#include "binding/call.h"
#include "cpu/cpu.h"

namespace lora4j {
namespace {

static_assert(sizeof(l4_pool) == 4 * 8, "callers describe pools as arrays of 8-byte fields");

// The pool as a matrix of one page to a row.
Matrix check_pool(const l4_pool* pool) {
  if (!pool) refuse("pool is null; pass a pool");
  if (pool->pages > INT32_MAX) refuse("pool has " + std::to_string(pool->pages) + " pages; it may have 2^31 - 1");
  if (pool->page_size < 1) refuse("pool.page_size is " + std::to_string(pool->page_size) + "; it must be 1 or more");
  l4_matrix all = {pool->data, pool->pages, pool->page_size, pool->page_size, 1, pool->dtype};
  return check_matrix("pool", &all);
}

void check_pages(const int32_t* pages, int64_t page_count, int64_t most, bool once) {
  if (page_count < 0) refuse("page_count is " + std::to_string(page_count) + "; it must be 0 or more");
  if (page_count > 0 && !pages) refuse("pages is null but page_count is " + std::to_string(page_count));
  for (int64_t p = 0; p < page_count; p++) {
    if (pages[p] < 0 || pages[p] >= most) {
      refuse("pages[" + std::to_string(p) + "] is " + std::to_string(pages[p]) + " but the pool has " +
             std::to_string(most) + " pages");
    }
  }
  if (!once) return;
  std::vector<int32_t> sorted(pages, pages + page_count);
  std::sort(sorted.begin(), sorted.end());
  auto twice = std::adjacent_find(sorted.begin(), sorted.end());
  if (twice != sorted.end()) refuse("pages has page " + std::to_string(*twice) + " twice; each holds other elements");
}

std::vector<Matrix> check_matrices(const l4_matrix* matrices, int64_t count, const Matrix& pool, int64_t page_count,
                                   bool into_pool) {
  if (count < 0) refuse("count is " + std::to_string(count) + "; it must be 0 or more");
  if (count > 0 && !matrices) refuse("matrices is null but count is " + std::to_string(count) + "; pass the array");
  std::vector<Matrix> checked;
  int64_t elements = 0;
  for (int64_t i = 0; i < count; i++) {
    std::string name = "matrices[" + std::to_string(i) + "]";
    Matrix m = check_matrix(name, matrices + i);
    check_apart(name, m, "pool", pool);
    if (!into_pool) {
      check_writable(name, m);
      for (int64_t j = 0; j < i; j++) {
        check_apart("matrices[" + std::to_string(j) + "]", checked[static_cast<size_t>(j)], name, m);
      }
    }
    if (__builtin_add_overflow(elements, m.rows * m.cols, &elements)) refuse(name + " reaches beyond 64-bit memory");
    checked.push_back(m);
  }
  // Not multiplied, for the product may overflow.
  if (elements > 0 && (elements - 1) / pool.cols >= page_count) {
    refuse("page_count is " + std::to_string(page_count) + " but the matrices have " + std::to_string(elements) +
           " elements, and a page has room for " + std::to_string(pool.cols));
  }
  return checked;
}

void copy_pages(const l4_pool* pool, const int32_t* pages, int64_t page_count, const l4_matrix* matrices, int64_t count,
                bool into_pool, const l4_place* where) {
  Place place = check_place(where);
  check_device(place);
  Matrix all = check_pool(pool);
  check_pages(pages, page_count, all.rows, into_pool);
  std::vector<Matrix> checked = check_matrices(matrices, count, all, page_count, into_pool);
  PagesParams params = {{all.data, all.rows, all.cols, all.type}, pages, checked.data(), count, into_pool};
#ifdef L4_CUDA_ARCHS
  if (place.device == L4_CUDA) return check_cuda(copy_pages_cuda(params, place));
#endif
  copy_pages_cpu(params, thread_count);
}

}  // namespace
}  // namespace lora4j

extern "C" {

int l4_scatter(const l4_pool* pool, const int32_t* pages, int64_t page_count, const l4_matrix* matrices, int64_t count,
               const l4_place* place) {
  return lora4j::guarded("l4_scatter",
                         [&] { lora4j::copy_pages(pool, pages, page_count, matrices, count, true, place); });
}

int l4_gather(const l4_matrix* matrices, int64_t count, const l4_pool* pool, const int32_t* pages, int64_t page_count,
              const l4_place* place) {
  return lora4j::guarded("l4_gather",
                         [&] { lora4j::copy_pages(pool, pages, page_count, matrices, count, false, place); });
}

}  // extern "C"
