// An adapter in the parameters of a kernel.
#pragma once

#include "core/params.h"

namespace lora4j {

// An adapter whose factors are contiguous along their rows.
struct Slot {
  const void* a;
  const void* b;
  int32_t a_stride;  // elements between rows
  int32_t b_stride;
  int32_t rank;
  float scale;
  DType a_type;
  DType b_type;

  static Slot of(const LowRank& adapter) {
    return {adapter.a.data,
            adapter.b.data,
            static_cast<int32_t>(adapter.a.row_stride),
            static_cast<int32_t>(adapter.b.row_stride),
            static_cast<int32_t>(adapter.rank()),
            adapter.scale,
            adapter.a.type,
            adapter.b.type};
  }
};

}  // namespace lora4j
