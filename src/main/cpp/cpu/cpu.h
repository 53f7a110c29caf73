// The CPU back end: the operations, spread over threads.
#pragma once

#include "core/combine.h"
#include "core/params.h"

namespace lora4j {

// False if scratch memory ran out; then the output is as it was.
bool merge_cpu(const MergeParams& params, int threads);
bool low_rank_update_cpu(const LowRankUpdateParams& params, int threads);

bool combine_cpu(const CombineParams& params, int threads);

}  // namespace lora4j
