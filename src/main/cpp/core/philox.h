// Philox 4x32-10 (Salmon et al., SC 2011): four random words from a key and a counter, without any state.
#pragma once

#include "core/element.h"

namespace lora4j {

struct PhiloxBlock {
  uint32_t word[4];
};

// key: the seed; counter: the block in the lower 64 bits, the stream in the upper ones.
L4_INLINE PhiloxBlock philox(uint64_t seed, uint64_t stream, uint64_t block) {
  uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
  uint32_t c0 = static_cast<uint32_t>(block), c1 = static_cast<uint32_t>(block >> 32);
  uint32_t c2 = static_cast<uint32_t>(stream), c3 = static_cast<uint32_t>(stream >> 32);
  for (int round = 0; round < 10; round++) {
    uint64_t first = static_cast<uint64_t>(0xd2511f53u) * c0;
    uint64_t second = static_cast<uint64_t>(0xcd9e8d57u) * c2;
    c0 = static_cast<uint32_t>(second >> 32) ^ c1 ^ k0;
    c1 = static_cast<uint32_t>(second);
    c2 = static_cast<uint32_t>(first >> 32) ^ c3 ^ k1;
    c3 = static_cast<uint32_t>(first);
    k0 += 0x9e3779b9u;
    k1 += 0xbb67ae85u;
  }
  return {{c0, c1, c2, c3}};
}

// The random word of element `index`.
L4_INLINE uint32_t philox_word(uint64_t seed, uint64_t stream, int64_t index) {
  PhiloxBlock block = philox(seed, stream, static_cast<uint64_t>(index) / 4);
  // Chosen, not indexed: registers have no numbers.
  uint32_t even = index & 2 ? block.word[2] : block.word[0];
  uint32_t odd = index & 2 ? block.word[3] : block.word[1];
  return index & 1 ? odd : even;
}

}  // namespace lora4j
