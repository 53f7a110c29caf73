// What each working thread needs: scratch memory that is kept between calls, and a defined floating-point mode.
#pragma once

#include <omp.h>

#include <cstdint>
#include <cstdlib>

#if defined(__SSE__)
#include <xmmintrin.h>
#endif

namespace lora4j {

// Cache-line aligned floats, grown on demand and kept until the thread ends.
class Scratch {
 public:
  Scratch() = default;
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  ~Scratch() { std::free(data_); }

  // Null if memory ran out. The contents are not kept.
  float* get(int64_t count) {
    if (count > capacity_) {
      std::free(data_);
      capacity_ = 0;
      uint64_t bytes = (static_cast<uint64_t>(count) * sizeof(float) + 63) / 64 * 64;
      data_ = static_cast<float*>(std::aligned_alloc(64, bytes));
      if (data_) capacity_ = count;
    }
    return data_;
  }

 private:
  float* data_ = nullptr;
  int64_t capacity_ = 0;
};

// Round to nearest even, nothing flushed to zero; other libraries in the process may have set a thread otherwise.
class FloatMode {
 public:
#if defined(__SSE__)
  FloatMode() : saved_(_mm_getcsr()) { _mm_setcsr(0x1f80); }
  ~FloatMode() { _mm_setcsr(saved_); }

 private:
  unsigned saved_;
#endif
};

// Threads worth starting for that many multiply-adds and pieces of work.
inline int team_size(int threads, int64_t units, double work) {
  constexpr double least_per_thread = 1e5;
  if (threads <= 0) threads = omp_get_max_threads();
  double useful = work / least_per_thread;
  if (useful < threads) threads = useful < 1 ? 1 : static_cast<int>(useful);
  return units < threads ? static_cast<int>(units) : threads;
}

}  // namespace lora4j
