// Attention over keys and values that lie in pages; see lora4j.h.
#pragma once

#include "core/params.h"
#include "lora4j/lora4j.h"

namespace lora4j {

struct AttentionParams {
  Matrix out;
  Matrix query;
  Matrix keys;
  Matrix values;
  const int32_t* sequences;
  const int32_t* positions;
  const int32_t* pages;
  l4_paging paging;
  int64_t head_dim;
};

AttentionParams check_attention(const l4_matrix* out, const l4_matrix* query, const l4_matrix* keys,
                                const l4_matrix* values, const int32_t* sequences, const int32_t* positions,
                                const int32_t* pages, const l4_paging* paging);

// False if scratch memory ran out.
bool attention_cpu(const AttentionParams& params, int threads);

}  // namespace lora4j
