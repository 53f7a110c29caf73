// Paged attention on the CPU: checks, and the tokens and heads spread over threads.
#include "cpu/attention.h"

#include <atomic>
#include <string>

#include "core/checks.h"
#include "cpu/kernels.h"
#include "cpu/thread.h"

namespace lora4j {
namespace {

Matrix checked(const char* name, const l4_matrix* m) {
  if (!m || (!m->data && m->rows > 0)) refuse(std::string(name) + " is null; pass a matrix");
  if (m->rows < 0 || m->cols < 1 || m->row_stride < m->cols || m->col_stride != 1) {
    refuse(std::string(name) + " must have rows that are contiguous and apart; copy it");
  }
  if (m->dtype < L4_F32 || m->dtype > L4_F16) refuse(std::string(name) + " has an unknown dtype");
  return {m->data, m->rows, m->cols, m->row_stride, m->col_stride, static_cast<DType>(m->dtype)};
}

void check_same(const char* name, const Matrix& m, const Matrix& query) {
  if (m.type != query.type) refuse(std::string(name) + " has another dtype than query; convert it");
}

}  // namespace

AttentionParams check_attention(const l4_matrix* out, const l4_matrix* query, const l4_matrix* keys,
                                const l4_matrix* values, const int32_t* sequences, const int32_t* positions,
                                const int32_t* pages, const l4_paging* paging) {
  if (!paging || !sequences || !positions || !pages) refuse("an array or the paging is null; pass it");
  AttentionParams params = {checked("out", out), checked("query", query), checked("keys", keys),
                            checked("values", values), sequences, positions, pages, *paging, 0};
  const l4_paging& p = *paging;
  if (p.kv_heads < 1 || p.heads < p.kv_heads || p.heads % p.kv_heads || params.query.cols % p.heads) {
    refuse("paging has " + std::to_string(p.heads) + " heads over " + std::to_string(p.kv_heads) +
           ", which must divide each other and the query's " + std::to_string(params.query.cols) + " columns");
  }
  params.head_dim = params.query.cols / p.heads;
  if (params.head_dim > 512) refuse("heads are wider than 512; such models have no kernel here");
  if (params.keys.cols != p.kv_heads * params.head_dim || params.values.cols != params.keys.cols ||
      params.values.rows != params.keys.rows || params.values.row_stride != params.keys.row_stride) {
    refuse("keys and values must both be (slots, kv_heads * head width), alike in memory");
  }
  if (params.out.rows != params.query.rows || params.out.cols != params.query.cols) {
    refuse("out must have the shape of query");
  }
  check_same("out", params.out, params.query);
  check_same("keys", params.keys, params.query);
  check_same("values", params.values, params.query);
  if (p.page_tokens < 1 || p.table_width < 1 || p.sequences < 0 || p.window < 0) {
    refuse("page_tokens and table_width must be 1 or more, sequences and window 0 or more");
  }
  int64_t page_count = params.keys.rows / p.page_tokens;
  for (int64_t t = 0; t < params.query.rows; t++) {
    if (sequences[t] < 0 || sequences[t] >= p.sequences || positions[t] < 0 ||
        positions[t] / p.page_tokens >= p.table_width) {
      refuse("token " + std::to_string(t) + " is at position " + std::to_string(positions[t]) + " of sequence " +
             std::to_string(sequences[t]) + ", which the table of pages does not have");
    }
    const int32_t* row = pages + sequences[t] * p.table_width;
    for (int64_t i = 0; i <= positions[t] / p.page_tokens; i++) {
      if (row[i] < 0 || row[i] >= page_count) {
        refuse("page " + std::to_string(i) + " of sequence " + std::to_string(sequences[t]) + " is " +
               std::to_string(row[i]) + "; there are " + std::to_string(page_count));
      }
    }
  }
  return params;
}

bool attention_cpu(const AttentionParams& params, int threads) {
  const Kernels& table = kernels();
  const l4_paging& p = params.paging;
  int64_t units = params.query.rows * p.kv_heads;
  double keys = 0;
  for (int64_t t = 0; t < params.query.rows; t++) keys += params.positions[t] + 1;
  int team = team_size(threads, units, 2.0 * keys * static_cast<double>(params.query.cols));
  float scale = static_cast<float>(p.scale);
  std::atomic<bool> failed{false};
#pragma omp parallel num_threads(team)
  {
    FloatMode mode;
    thread_local Scratch scratch;
#pragma omp for schedule(dynamic, 4)
    for (int64_t i = 0; i < units; i++) {
      int64_t token = i / p.kv_heads;
      int64_t end = params.positions[token] + 1;
      int64_t first = p.window > 0 && end > p.window ? end - p.window : 0;
      // Places of the keys as int64, then their weights.
      float* space = scratch.get(3 * (end - first) + 16);
      if (!space) {
        failed = true;
        continue;
      }
      table.attend({params.out, params.query, params.keys, params.values,
                    params.pages + params.sequences[token] * p.table_width, token, i % p.kv_heads,
                    p.heads / p.kv_heads, params.head_dim, first, end - first, p.page_tokens, scale, space});
    }
  }
  return !failed;
}

}  // namespace lora4j
