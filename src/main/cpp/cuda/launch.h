// Launch helpers.
#pragma once

#include <cuda_runtime.h>

#include "core/params.h"

namespace lora4j {

// Makes a device current for a scope.
class DeviceScope {
 public:
  explicit DeviceScope(int ordinal) {
    error_ = cudaGetDevice(&before_);
    if (!error_ && before_ != ordinal) {
      error_ = cudaSetDevice(ordinal);
      changed_ = !error_;
    }
  }
  ~DeviceScope() {
    if (changed_) cudaSetDevice(before_);
  }
  DeviceScope(const DeviceScope&) = delete;
  DeviceScope& operator=(const DeviceScope&) = delete;

  cudaError_t error() const { return error_; }

 private:
  cudaError_t error_ = cudaSuccess;
  int before_ = 0;
  bool changed_ = false;
};

}  // namespace lora4j
