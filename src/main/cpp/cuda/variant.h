// Which kernels run. Plain and tiled ones give the same bits.
#pragma once

#include <cstdlib>

namespace lora4j {

enum class Variant {
  plain,  // the definition itself, an element or a row at a time
  tiled,  // the default
  fast,   // merges on tensor cores, in another order
};

inline Variant chosen_variant(bool fast) {
  const char* plain = std::getenv("LORA4J_CUDA_PLAIN");
  if (plain && *plain == '1') return Variant::plain;
  return fast ? Variant::fast : Variant::tiled;
}

}  // namespace lora4j
