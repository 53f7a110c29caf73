// lora4j.h over the back ends: checks, dispatch by device, and every failure as a code with a message.
#include "lora4j/lora4j.h"

#include <atomic>
#include <cstring>
#include <new>
#include <string>

#include "binding/call.h"
#include "core/checks.h"
#include "cpu/attention.h"
#include "cpu/cpu.h"
#include "cpu/kernels.h"

#ifdef L4_CUDA_ARCHS
#include "cuda/cuda.h"
#define L4_CUDA_TEXT "CUDA " L4_CUDA_ARCHS
#else
#define L4_CUDA_TEXT "CUDA not compiled"
#endif

#ifdef L4_X86
#define L4_ISA_TEXT "CPU plain, avx2, avx512"
#else
#define L4_ISA_TEXT "CPU plain"
#endif

namespace lora4j {

thread_local std::string last_error;
thread_local int thread_count = 0;
std::atomic<bool> fast_merge{false};

int fail(int code, const char* function, const std::string& message) noexcept {
  try {
    last_error = std::string(function) + ": " + message;
  } catch (...) {
    last_error.clear();
  }
  return code;
}

namespace {

void merge(const l4_matrix* w, const l4_matrix* from, const l4_low_rank* updates, int64_t count, const float* row_factors,
           int32_t* not_finite, const l4_place* where) {
  Place place = check_place(where);
  check_device(place);
  CheckedMerge checked = check_merge(w, from, updates, count, row_factors);
  if (reinterpret_cast<uintptr_t>(not_finite) % alignof(int32_t)) {
    throw Error{L4_BAD_ARGUMENT, "not_finite is not aligned to 4 bytes; pass the address of an int32"};
  }
  MergeParams params = {checked.w,       checked.from, checked.updates.data(), count,
                        checked.factors, not_finite,   fast_merge};
  if (checked.w.rows == 0 || checked.w.cols == 0) return;
  if (count == 0 && !not_finite && checked.from.data == checked.w.data) return;
#ifdef L4_CUDA_ARCHS
  if (place.device == L4_CUDA) {
    check_limit("count", count, most_cuda_updates);
    return check_cuda(merge_cuda(params, place));
  }
#endif
  if (!merge_cpu(params, thread_count)) throw std::bad_alloc();
}

void low_rank_update(const l4_matrix* y, const l4_matrix* x, const int32_t* rows, const l4_low_rank* adapters,
                     int64_t count, const l4_place* where) {
  Place place = check_place(where);
  check_device(place);
  CheckedLowRankUpdate checked = check_low_rank_update(y, x, rows, adapters, count);
  LowRankUpdateParams params = {checked.y, checked.x, rows, checked.adapters.data(), count};
  if (checked.y.rows == 0 || checked.y.cols == 0) return;
#ifdef L4_CUDA_ARCHS
  if (place.device == L4_CUDA) {
    for (const LowRank& adapter : checked.adapters) check_limit("rank", adapter.rank(), most_cuda_rank);
    return check_cuda(low_rank_update_cuda(params, place));
  }
#endif
  if (!low_rank_update_cpu(params, thread_count)) throw std::bad_alloc();
}

}  // namespace
}  // namespace lora4j

extern "C" {

const char* l4_version(void) { return L4_VERSION; }

const char* l4_build_info(void) { return "lora4j " L4_VERSION "; " L4_ISA_TEXT "; " L4_CUDA_TEXT; }

int l4_has_device(int device) {
#ifdef L4_CUDA_ARCHS
  return device == L4_CPU || device == L4_CUDA;
#else
  return device == L4_CPU;
#endif
}

const char* l4_cpu_isa(void) { return lora4j::kernels().name; }

int l4_set_cpu_isa(const char* name) {
  if (lora4j::set_kernels(name)) return L4_OK;
  return lora4j::fail(L4_UNSUPPORTED, "l4_set_cpu_isa",
                      std::string("name is \"") + name + "\", which this CPU or build lacks; use one of " L4_ISA_TEXT
                                                         " that the CPU has, or null for the best");
}

int l4_set_merge(const char* mode) {
  bool fast = mode && std::strcmp(mode, "fast") == 0;
  if (!fast && mode && std::strcmp(mode, "exact") != 0) {
    return lora4j::fail(L4_BAD_ARGUMENT, "l4_set_merge",
                        std::string("mode is \"") + mode + "\"; use \"exact\" or \"fast\"");
  }
  lora4j::fast_merge = fast;
  return L4_OK;
}

int l4_set_threads(int threads) {
  if (threads < 0) {
    return lora4j::fail(L4_BAD_ARGUMENT, "l4_set_threads",
                        "threads is " + std::to_string(threads) + "; it must be 0 or more");
  }
  lora4j::thread_count = threads;
  return L4_OK;
}

const char* l4_last_error(void) { return lora4j::last_error.c_str(); }

int l4_merge(const l4_matrix* w, const l4_low_rank* updates, int64_t count, const l4_place* place) {
  return lora4j::guarded("l4_merge", [&] { lora4j::merge(w, nullptr, updates, count, nullptr, nullptr, place); });
}

int l4_merge_checked(const l4_matrix* w, const l4_matrix* from, const l4_low_rank* updates, int64_t count,
                     const float* row_factors, int32_t* not_finite, const l4_place* place) {
  return lora4j::guarded("l4_merge_checked",
                         [&] { lora4j::merge(w, from, updates, count, row_factors, not_finite, place); });
}

int l4_low_rank_update(const l4_matrix* y, const l4_matrix* x, const int32_t* rows, const l4_low_rank* adapters,
                       int64_t count, const l4_place* place) {
  return lora4j::guarded("l4_low_rank_update",
                         [&] { lora4j::low_rank_update(y, x, rows, adapters, count, place); });
}

int l4_paged_attention(const l4_matrix* out, const l4_matrix* query, const l4_matrix* keys, const l4_matrix* values,
                       const int32_t* sequences, const int32_t* positions, const int32_t* pages,
                       const l4_paging* paging) {
  return lora4j::guarded("l4_paged_attention", [&] {
    auto params = lora4j::check_attention(out, query, keys, values, sequences, positions, pages, paging);
    if (params.query.rows > 0 && !lora4j::attention_cpu(params, lora4j::thread_count)) throw std::bad_alloc();
  });
}

}  // extern "C"
