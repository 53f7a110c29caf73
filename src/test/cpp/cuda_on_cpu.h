// Stands in for device.h without a GPU: a block's threads are fibers of one host thread, which run one after the other
// from barrier to barrier, forwards and backwards in turn. Copies that are queued arrive only when they are waited for,
// and shared memory is NaN before it is written, so a missing barrier or wait shows in the result. The blocks of a
// cluster run together, clusters one after another. L4_CLUSTER: the blocks of a cluster, of sm_90 if not given.
#pragma once

#include <ucontext.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <deque>
#include <functional>
#include <memory>
#include <vector>

#include "core/element.h"

#ifndef L4_CLUSTER
#define L4_CLUSTER 8
#endif

#define L4_DEVICE inline
#define __device__
#define __global__ static
#define __shared__ static
#define __grid_constant__
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
#define threadIdx (::cuda_on_cpu::here->thread)
#define blockIdx (::cuda_on_cpu::here->block)
#define gridDim (::cuda_on_cpu::grid)

struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(16) uint4 {
  uint32_t x, y, z, w;
};

namespace cuda_on_cpu {

struct Dim {
  unsigned x;
};

struct Copy {
  void* to;
  const void* from;
  int bytes;
};

struct Block;

struct Fiber {
  ucontext_t context;
  std::unique_ptr<char[]> stack;
  Dim thread{}, block{};
  Block* home = nullptr;
  bool done = false;
  uint64_t cluster_turn = 0;
  std::vector<Copy> queued;
  std::deque<std::vector<Copy>> groups;

  void prepare();
};

inline thread_local Fiber* here = nullptr;
inline thread_local ucontext_t scheduler;
inline thread_local Dim grid;

inline void yield() { swapcontext(&here->context, &scheduler); }

struct Barrier {
  unsigned size = 0, arrived = 0;
  uint64_t turn = 0;

  uint64_t arrive() {
    uint64_t mine = turn;
    if (++arrived == size) {
      arrived = 0;
      turn++;
    }
    return mine;
  }
  void wait(uint64_t mine) {
    while (turn == mine) yield();
  }
};

// What the lanes of a warp show each other.
struct Shown {
  float value;
  const uint16_t* row;
  uint32_t words[6];
};

struct Warp {
  Barrier barrier;
  Shown shown[32];
};

struct Block {
  Barrier barrier;
  std::vector<Warp> warps;
  std::unique_ptr<float[]> memory;
  float* shared;
  Block* cluster;  // its first block
  Barrier* cluster_barrier;
};

inline void deliver(const std::vector<Copy>& copies) {
  for (const Copy& copy : copies) {
    std::memset(copy.to, 0, 16);
    if (copy.bytes > 0) std::memcpy(copy.to, copy.from, static_cast<size_t>(copy.bytes));
  }
}

inline thread_local const std::function<void()>* body;

inline void start() {
  (*body)();
  here->done = true;
  yield();
}

inline void Fiber::prepare() {
  constexpr size_t stack_bytes = 128 * 1024;
  if (!stack) stack.reset(new char[stack_bytes]);
  done = false;
  getcontext(&context);
  context.uc_stack.ss_sp = stack.get();
  context.uc_stack.ss_size = stack_bytes;
  context.uc_link = nullptr;
  makecontext(&context, start, 0);
}

// Runs a kernel as a launch would.
struct Launch {
  int processors = 1;

  template <typename Args>
  int operator()(void (*kernel)(Args), unsigned blocks, unsigned threads, int64_t shared, int cluster,
                 const Args& args) const {
    std::function<void()> call = [&] { kernel(args); };
    body = &call;
    grid.x = blocks;
    unsigned together = static_cast<unsigned>(cluster);
    std::vector<Fiber> fibers(together * threads);
    size_t floats = static_cast<size_t>(shared) / sizeof(float);
    for (unsigned first = 0; first < blocks; first += together) {
      std::vector<Block> home(together);
      Barrier cluster_barrier;
      cluster_barrier.size = together * threads;
      for (Block& block : home) {
        block.barrier.size = threads;
        block.warps.resize(threads / 32);
        for (Warp& warp : block.warps) warp.barrier.size = 32;
        // Exactly as much as was asked for, so that AddressSanitizer sees each step outside.
        block.memory.reset(new float[floats]);
        for (size_t i = 0; i < floats; i++) block.memory[i] = NAN;
        block.shared = block.memory.get();
        block.cluster = home.data();
        block.cluster_barrier = &cluster_barrier;
      }
      for (unsigned i = 0; i < fibers.size(); i++) {
        fibers[i].thread.x = i % threads;
        fibers[i].block.x = first + i / threads;
        fibers[i].home = &home[i / threads];
        fibers[i].prepare();
      }
      bool forwards = true;
      for (size_t left = fibers.size(); left > 0; forwards = !forwards) {
        for (size_t i = 0; i < fibers.size(); i++) {
          Fiber& fiber = fibers[forwards ? i : fibers.size() - 1 - i];
          if (fiber.done) continue;
          here = &fiber;
          swapcontext(&scheduler, &fiber.context);
          if (fiber.done) left--;
        }
      }
    }
    return 0;
  }
};

// Shows something to the warp, and calls look(what all lanes show).
template <typename Look>
void show(const Shown& mine, Look look) {
  unsigned thread = here->thread.x;
  Warp& warp = here->home->warps[thread / 32];
  warp.shown[thread % 32] = mine;
  warp.barrier.wait(warp.barrier.arrive());
  look(warp.shown);
  warp.barrier.wait(warp.barrier.arrive());
}

inline float exchange(float value, int from) {
  float theirs = 0.0f;
  show({value, nullptr, {}}, [&](const Shown* shown) { theirs = shown[from].value; });
  return theirs;
}

}  // namespace cuda_on_cpu

static inline void __syncthreads() {
  cuda_on_cpu::Barrier& barrier = cuda_on_cpu::here->home->barrier;
  barrier.wait(barrier.arrive());
}

template <typename T>
static inline T min(T a, T b) {
  return a < b ? a : b;
}

static inline float __uint_as_float(uint32_t bits) { return lora4j::float_of(bits); }
static inline uint32_t __float_as_uint(float value) { return lora4j::bits_of(value); }

namespace lora4j {

constexpr int device_cluster = L4_CLUSTER;

L4_DEVICE float* dynamic_shared() { return cuda_on_cpu::here->home->shared; }

L4_DEVICE float half_to_float(uint16_t bits) { return f16_to_f32(bits); }

template <DType type>
L4_DEVICE uint32_t round_pair(float low, float high) {
  uint32_t first = type == DType::bf16 ? f32_to_bf16(low) : f32_to_f16(low);
  uint32_t second = type == DType::bf16 ? f32_to_bf16(high) : f32_to_f16(high);
  return first | second << 16;
}

L4_DEVICE float shuffle_down(float value, int distance, int width) {
  int lane = static_cast<int>(cuda_on_cpu::here->thread.x % 32);
  return cuda_on_cpu::exchange(value, lane % width + distance < width ? lane + distance : lane);
}

L4_DEVICE float shuffle_xor(float value, int mask, int) {
  return cuda_on_cpu::exchange(value, static_cast<int>(cuda_on_cpu::here->thread.x % 32) ^ mask);
}

L4_DEVICE void copy_async(void* to, const void* from, int bytes = 16) {
  std::memset(to, 0xff, 16);
  cuda_on_cpu::here->queued.push_back({to, from, bytes});
}

L4_DEVICE void commit_copies() {
  cuda_on_cpu::here->groups.push_back(std::move(cuda_on_cpu::here->queued));
  cuda_on_cpu::here->queued.clear();
}

template <int pending>
L4_DEVICE void wait_copies() {
  auto& groups = cuda_on_cpu::here->groups;
  for (; groups.size() > pending; groups.pop_front()) cuda_on_cpu::deliver(groups.front());
}

L4_DEVICE void load_transposed(uint32_t (&out)[4], const uint16_t* row) {
  unsigned lane = cuda_on_cpu::here->thread.x % 32;
  cuda_on_cpu::show({0.0f, row, {}}, [&](const cuda_on_cpu::Shown* shown) {
    for (unsigned m = 0; m < 4; m++) {
      uint32_t low = shown[m * 8 + lane % 4 * 2].row[lane / 4];
      uint32_t high = shown[m * 8 + lane % 4 * 2 + 1].row[lane / 4];
      out[m] = low | high << 16;
    }
  });
}

L4_DEVICE void multiply_add(float (&sum)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  unsigned lane = cuda_on_cpu::here->thread.x % 32;
  cuda_on_cpu::show({0.0f, nullptr, {a[0], a[1], a[2], a[3], b0, b1}}, [&](const cuda_on_cpu::Shown* shown) {
    auto number = [](uint32_t word, unsigned k) { return bf16_to_f32(static_cast<uint16_t>(word >> (16 * (k % 2)))); };
    for (unsigned i = 0; i < 4; i++) {
      unsigned row = lane / 4, col = lane % 4 * 2 + i % 2;
      for (unsigned k = 0; k < 16; k++) {
        float left = number(shown[row * 4 + k % 8 / 2].words[k / 8 * 2 + i / 2], k);
        float right = number(shown[col * 4 + k % 8 / 2].words[4 + k / 8], k);
        sum[i] += left * right;
      }
    }
  });
}

L4_DEVICE uint32_t anew(uint32_t value) { return value; }

L4_DEVICE void prefetch_l2(const void*) {}

L4_DEVICE void cluster_arrive() {
  if (device_cluster > 1) cuda_on_cpu::here->cluster_turn = cuda_on_cpu::here->home->cluster_barrier->arrive();
}

L4_DEVICE void cluster_wait() {
  if (device_cluster > 1) {
    cuda_on_cpu::here->home->cluster_barrier->wait(cuda_on_cpu::here->cluster_turn);
  } else {
    __syncthreads();
  }
}

L4_DEVICE void store_in(float* at, int block, float value) {
  const cuda_on_cpu::Block& home = *cuda_on_cpu::here->home;
  if (device_cluster > 1) {
    home.cluster[block].shared[at - home.shared] = value;
  } else if (block == 0) {
    *at = value;
  }
}

}  // namespace lora4j
