// lora4j.h over the back ends: checks, dispatch by device, and every failure as a code with a message.
#include "lora4j/lora4j.h"

#include <cstring>
#include <new>
#include <string>

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
namespace {

thread_local std::string last_error;
thread_local int thread_count = 0;

int fail(int code, const char* function, const std::string& message) noexcept {
  try {
    last_error = std::string(function) + ": " + message;
  } catch (...) {
    last_error.clear();
  }
  return code;
}

// Runs a call and turns whatever it throws into a code.
template <typename Call>
int guarded(const char* function, const Call& call) noexcept {
  try {
    call();
    return L4_OK;
  } catch (const Error& error) {
    return fail(error.code, function, error.message);
  } catch (const std::bad_alloc&) {
    return fail(L4_FAILED, function, "out of memory for scratch space; free memory or use fewer threads");
  } catch (const std::exception& error) {
    return fail(L4_FAILED, function, error.what());
  } catch (...) {
    return fail(L4_FAILED, function, "unknown failure");
  }
}

void check_device(const Place& place) {
  if (!l4_has_device(place.device)) {
    throw Error{L4_UNSUPPORTED,
                "place.device is CUDA but this library was compiled without CUDA; build it where nvcc is installed "
                "(-DLORA4J_CUDA=ON), or move the matrices to the CPU"};
  }
}

#ifdef L4_CUDA_ARCHS
void check_cuda(int error) {
  if (error) throw Error{L4_FAILED, std::string("CUDA: ") + cuda_error_name(error)};
}

void check_limit(const char* name, int64_t value, int64_t most) {
  if (value > most) {
    throw Error{L4_UNSUPPORTED,
                std::string(name) + " is " + std::to_string(value) + "; CUDA takes at most " + std::to_string(most)};
  }
}
#endif

void merge(const l4_matrix* w, const l4_low_rank* updates, int64_t count, const l4_place* where) {
  Place place = check_place(where);
  check_device(place);
  CheckedMerge checked = check_merge(w, updates, count);
  MergeParams params = {checked.w, checked.updates.data(), count};
  if (count == 0 || checked.w.rows == 0 || checked.w.cols == 0) return;
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
  return lora4j::guarded("l4_merge", [&] { lora4j::merge(w, updates, count, place); });
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
