// y[t] += s b (a x[t]) for a batch whose rows use different adapters, y (T, out), x (T, in). The chains are fixed for each
// row, so its bits do not depend on the batch.
#include "cuda/cuda.h"
#include "cuda/launch.h"
#include "cuda/update_dispatch.h"

namespace lora4j {

int low_rank_update_cuda(const LowRankUpdateParams& params, const Place& place) {
  DeviceScope device(place.ordinal);
  if (device.error()) return device.error();
  int major = 0;
  cudaError_t error = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, place.ordinal);
  if (error) return error;
  OnStream launch{static_cast<cudaStream_t>(place.stream), 0};
  return low_rank_update_with(params, chosen_variant(false), major >= 9 ? 8 : 1, launch);
}

}  // namespace lora4j
