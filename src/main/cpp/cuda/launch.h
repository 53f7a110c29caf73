// Launching kernels from the host.
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

// Queues kernels on a stream.
struct OnStream {
  cudaStream_t stream;
  int processors;  // of the device, that run blocks

  template <typename Args>
  int operator()(void (*kernel)(Args), unsigned blocks, unsigned threads, int64_t shared, int cluster,
                 const Args& args) const {
    if (shared > 48 * 1024) {
      cudaError_t error =
          cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared));
      if (error) return error;
    }
    if (cluster == 1) {
      kernel<<<blocks, threads, static_cast<size_t>(shared), stream>>>(args);
      return cudaGetLastError();
    }
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3(blocks);
    config.blockDim = dim3(threads);
    config.dynamicSmemBytes = static_cast<size_t>(shared);
    config.stream = stream;
    cudaLaunchAttribute attribute = {};
    attribute.id = cudaLaunchAttributeClusterDimension;
    attribute.val.clusterDim.x = static_cast<unsigned>(cluster);
    attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
    config.attrs = &attribute;
    config.numAttrs = 1;
    return cudaLaunchKernelEx(&config, kernel, args);
  }
};

}  // namespace lora4j
