// What every function of lora4j.h does around its work: failures as codes with a message, dispatch by device.
#pragma once

#include <exception>
#include <new>
#include <string>

#include "core/checks.h"

#ifdef L4_CUDA_ARCHS
#include "cuda/cuda.h"
#endif

namespace lora4j {

// Of the calling thread: l4_last_error and l4_set_threads.
extern thread_local std::string last_error;
extern thread_local int thread_count;

// Keeps the message for l4_last_error.
int fail(int code, const char* function, const std::string& message) noexcept;

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

inline void check_device(const Place& place) {
  if (!l4_has_device(place.device)) {
    throw Error{L4_UNSUPPORTED,
                "place.device is CUDA but this library was compiled without CUDA; build it where nvcc is installed "
                "(-DLORA4J_CUDA=ON), or move the matrices to the CPU"};
  }
}

#ifdef L4_CUDA_ARCHS
inline void check_cuda(int error) {
  if (error) throw Error{L4_FAILED, std::string("CUDA: ") + cuda_error_name(error)};
}

inline void check_limit(const char* name, int64_t value, int64_t most) {
  if (value > most) {
    throw Error{L4_UNSUPPORTED,
                std::string(name) + " is " + std::to_string(value) + "; CUDA takes at most " + std::to_string(most)};
  }
}

inline void check_scratch(const void* scratch, int64_t bytes, int64_t needed) {
  if (bytes < needed || !scratch || reinterpret_cast<uintptr_t>(scratch) % 16) {
    refuse("scratch has " + std::to_string(scratch ? bytes : 0) + " bytes; it must have " + std::to_string(needed) +
           " in device memory, aligned to 16");
  }
}
#endif

}  // namespace lora4j
