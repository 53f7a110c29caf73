// Which kernels run. All give the same bits.
#pragma once

#include <cstdlib>

namespace lora4j {

enum class Variant {
  plain,      // the definition itself, an element or a row at a time
  tiled,      // the default
  pipelined,  // faster by design, not yet run on a GPU
};

inline bool set_in_environment(const char* name) {
  const char* value = std::getenv(name);
  return value && *value == '1';
}

inline Variant chosen_variant() {
  if (set_in_environment("LORA4J_CUDA_PLAIN")) return Variant::plain;
  return set_in_environment("LORA4J_CUDA_PIPELINED") ? Variant::pipelined : Variant::tiled;
}

}  // namespace lora4j
