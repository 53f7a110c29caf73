// The CPU back end: the operations, spread over threads.
#pragma once

#include "core/combine.h"
#include "core/low_rank_backward.h"
#include "core/norms.h"
#include "core/pages.h"
#include "core/params.h"
#include "core/quantized.h"

namespace lora4j {

// False if scratch memory ran out; then the output is as it was.
bool merge_cpu(const MergeParams& params, int threads);
bool low_rank_update_cpu(const LowRankUpdateParams& params, int threads);

bool low_rank_backward_cpu(const LowRankBackwardParams& params, int threads);
bool combine_cpu(const CombineParams& params, int threads);
bool gram_cpu(const GramParams& params, int threads);
bool row_norms_cpu(const RowNormsParams& params, int threads);
bool dequantize_cpu(const DequantizeParams& params, int threads);
void copy_pages_cpu(const PagesParams& params, int threads);

}  // namespace lora4j
