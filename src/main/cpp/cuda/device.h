// What the kernels need of the device beyond C++: its instructions, its blocks and their shared memory. Without nvcc the
// tests' cuda_on_cpu.h stands in for it, and the same kernels run as host code.
#pragma once

#include "core/element.h"

#if !defined(__CUDACC__)
#include "cuda_on_cpu.h"
#else

#include <cuda_fp16.h>
#include <cuda_runtime.h>

#define L4_DEVICE __device__ __forceinline__

namespace lora4j {

// The block's shared memory whose size the launch gives.
L4_DEVICE float* dynamic_shared() {
  extern __shared__ __align__(16) float memory[];
  return memory;
}

L4_DEVICE float half_to_float(uint16_t bits) { return __half2float(__ushort_as_half(bits)); }

// Two numbers rounded to nearest even, the first in the low half; a NaN is any of its type.
template <DType type>
L4_DEVICE uint32_t round_pair(float low, float high) {
  uint32_t word;
  if constexpr (type == DType::bf16) {
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
  } else {
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
  }
  return word;
}

// The value of the lane `distance` further among `width`.
L4_DEVICE float shuffle_down(float value, int distance, int width) {
  return __shfl_down_sync(0xffffffffu, value, static_cast<unsigned>(distance), width);
}

// The value of the lane whose number differs in `mask`.
L4_DEVICE float shuffle_xor(float value, int mask, int width) {
  return __shfl_xor_sync(0xffffffffu, value, mask, width);
}

// Queues a copy of 16 bytes from global to shared memory; only the first `bytes` are read, the rest become zero.
L4_DEVICE void copy_async(void* to, const void* from, int bytes = 16) {
  unsigned address = static_cast<unsigned>(__cvta_generic_to_shared(to));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(from), "r"(bytes) : "memory");
}

L4_DEVICE void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits until at most `pending` of this thread's latest groups of copies are under way.
template <int pending>
L4_DEVICE void wait_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory");
}

// Four matrices of 8 x 8 numbers of 16 bits, transposed; lane i gives the address of row i % 8 of matrix i / 8.
L4_DEVICE void load_transposed(uint32_t (&out)[4], const uint16_t* row) {
  unsigned address = static_cast<unsigned>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
               : "r"(address)
               : "memory");
}

// sum (16 x 8) += a (16 x 16) b (16 x 8), bfloat16, on the tensor cores of a warp.
L4_DEVICE void multiply_add(float (&sum)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// The same value, of which the compiler knows nothing: what follows from it is computed anew, not kept in registers.
L4_DEVICE uint32_t anew(uint32_t value) {
  asm volatile("" : "+r"(value));
  return value;
}

L4_DEVICE void prefetch_l2(const void* line) { asm volatile("prefetch.global.L2 [%0];" ::"l"(line)); }

// Blocks of a cluster: as many as the host launches together on this architecture.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
constexpr int device_cluster = 8;
#else
constexpr int device_cluster = 1;
#endif

L4_DEVICE void cluster_arrive() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.arrive.release;" ::: "memory");
#endif
}

L4_DEVICE void cluster_wait() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.wait.acquire;" ::: "memory");
#else
  __syncthreads();
#endif
}

// Writes to the same place in the shared memory of block `block` of the cluster; each block is written once.
L4_DEVICE void store_in(float* at, int block, float value) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  unsigned here = static_cast<unsigned>(__cvta_generic_to_shared(at)), there;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(here), "r"(block));
  asm volatile("st.shared::cluster.f32 [%0], %1;" ::"r"(there), "f"(value) : "memory");
#else
  if (block == 0) *at = value;
#endif
}

}  // namespace lora4j

#endif
