// Chooses the instruction set, once.
#include <atomic>
#include <cstring>

#include "cpu/elementwise.h"
#include "cpu/kernels.h"

namespace lora4j {
namespace {

// Best first.
using Getter = const Kernels* (*)();
struct Candidate {
  Getter get;
  bool (*runs_here)();
};

bool always() { return true; }

#ifdef L4_X86
bool has_avx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
}

bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}

const Candidate candidates[] = {
    {avx512_kernels, has_avx512}, {avx2_kernels, has_avx2}, {plain_kernels, always}};
#else
const Candidate candidates[] = {{plain_kernels, always}};
#endif

std::atomic<const Kernels*> chosen{nullptr};

const Kernels* find(const char* name) {
  for (const Candidate& candidate : candidates) {
    const Kernels* table = candidate.get();
    if ((!name || std::strcmp(name, table->name) == 0) && candidate.runs_here()) return table;
  }
  return nullptr;
}

}  // namespace

const Kernels& kernels() {
  const Kernels* table = chosen.load(std::memory_order_acquire);
  if (!table) {
    table = find(nullptr);
    chosen.store(table, std::memory_order_release);
  }
  return *table;
}

bool set_kernels(const char* name) {
  const Kernels* table = find(name);
  if (table) chosen.store(table, std::memory_order_release);
  return table != nullptr;
}

const Elementwise& elementwise() {
#ifdef L4_X86
  const Kernels* table = &kernels();
  if (table == avx512_kernels()) return *avx512_elementwise();
  if (table == avx2_kernels()) return *avx2_elementwise();
#endif
  return *plain_elementwise();
}

}  // namespace lora4j
