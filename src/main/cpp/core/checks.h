// Argument checks of lora4j.h. Each throws an Error that names the argument; none touches a matrix.
#pragma once

#include <string>
#include <vector>

#include "core/params.h"
#include "lora4j/lora4j.h"

namespace lora4j {

struct Error {
  int code;
  std::string message;
};

struct CheckedMerge {
  Matrix w;
  Matrix from;
  std::vector<LowRank> updates;
};

struct CheckedLowRankUpdate {
  Matrix y;
  Matrix x;
  std::vector<LowRank> adapters;
};

Place check_place(const l4_place* place);
CheckedMerge check_merge(const l4_matrix* w, const l4_matrix* from, const l4_low_rank* updates, int64_t count);
CheckedLowRankUpdate check_low_rank_update(const l4_matrix* y, const l4_matrix* x, const int32_t* rows,
                                           const l4_low_rank* adapters, int64_t count);

}  // namespace lora4j
