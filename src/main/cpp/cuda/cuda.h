// The CUDA back end. Without CUDA compiled, none of this exists.
#pragma once

#include "core/combine.h"
#include "core/low_rank_backward.h"
#include "core/norms.h"
#include "core/pages.h"
#include "core/params.h"
#include "core/quantized.h"

namespace lora4j {

// Queue the work on the place's stream; the result is a cudaError_t as an int, with cuda_error_name for its text.
int merge_cuda(const MergeParams& params, const Place& place);
int low_rank_update_cuda(const LowRankUpdateParams& params, const Place& place);
int low_rank_backward_cuda(const LowRankBackwardParams& params, void* scratch, const Place& place);
int combine_cuda(const CombineParams& params, void* scratch, const Place& place);
int gram_cuda(const GramParams& params, const Place& place);
int row_norms_cuda(const RowNormsParams& params, void* scratch, const Place& place);
int dequantize_cuda(const DequantizeParams& params, const Place& place);
int copy_pages_cuda(const PagesParams& params, const Place& place);
const char* cuda_error_name(int error);

int64_t low_rank_backward_cuda_scratch(int64_t in, int64_t out, int64_t rank);
int64_t combine_cuda_scratch(int64_t rows, int64_t cols);

constexpr int64_t most_cuda_updates = 32;    // passed by value in the kernel's 4 KiB of parameters
constexpr int64_t most_cuda_rank = 12288;    // one row's products in 48 KiB of shared memory
constexpr int64_t most_cuda_tensors = 32;
constexpr int64_t most_cuda_norm_rank = 2048;

}  // namespace lora4j
