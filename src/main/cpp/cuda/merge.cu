// w = round(from + sum_i s_i b_i a_i), w (out, in) row by row; from is w itself or a matrix of the same shape and type.
#include "cuda/cuda.h"
#include "cuda/launch.h"
#include "cuda/merge_dispatch.h"

namespace lora4j {

int merge_cuda(const MergeParams& params, const Place& place) {
  DeviceScope device(place.ordinal);
  if (device.error()) return device.error();
  OnStream launch{static_cast<cudaStream_t>(place.stream), 0};
  cudaError_t error = cudaDeviceGetAttribute(&launch.processors, cudaDevAttrMultiProcessorCount, place.ordinal);
  if (error) return error;
  return merge_with(params, chosen_variant(params.fast), launch);
}

const char* cuda_error_name(int error) { return cudaGetErrorString(static_cast<cudaError_t>(error)); }

}  // namespace lora4j
