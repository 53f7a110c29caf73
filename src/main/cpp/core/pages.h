// l4_scatter and l4_gather: their arguments after checking, and where an element lies.
#pragma once

#include "core/params.h"

namespace lora4j {

struct Pool {
  void* data;
  int64_t pages;
  int64_t page_size;
  DType type;
};

struct PagesParams {
  Pool pool;
  const int32_t* pages;
  const Matrix* matrices;
  int64_t count;
  bool into_pool;
};

// The element of the pool that holds the n-th element of the list of pages.
L4_INLINE int64_t pool_index(int64_t page_size, const int32_t* pages, int64_t n) {
  return pages[n / page_size] * page_size + n % page_size;
}

// Copies one element; its bits where types agree.
L4_INLINE void copy_element(const void* from, int64_t from_index, DType from_type, void* to, int64_t to_index,
                            DType to_type) {
  if (from_type != to_type) {
    store(to, to_index, to_type, load(from, from_index, from_type));
  } else if (from_type == DType::f32) {
    static_cast<uint32_t*>(to)[to_index] = static_cast<const uint32_t*>(from)[from_index];
  } else {
    static_cast<uint16_t*>(to)[to_index] = static_cast<const uint16_t*>(from)[from_index];
  }
}

}  // namespace lora4j
