// l4_combine for one element, and the choice of the largest elements: what lora4j.h defines, the body of the CUDA
// kernels, and what the tests hold both back ends to.
#pragma once

#include "core/params.h"
#include "core/philox.h"

namespace lora4j {

enum class Pruning : int { all = 0, largest = 1, random = 2 };
enum class Election : int { none = 0, total = 1, frequency = 2 };

struct TaskTensor {
  Matrix x;
  float weight;
  Pruning pruning;
  int64_t kept;         // largest
  uint64_t keep_below;  // random: words below it keep their element, 2^32 keeps all
  float divisor;        // random
  uint64_t seed;
  uint64_t stream;
};

struct CombineParams {
  Matrix y;
  const TaskTensor* tensors;
  int64_t count;
  Election election;
};

// Order of magnitudes as an unsigned number below 2^31.
L4_INLINE uint32_t magnitude_key(float value) { return bits_of(value) & 0x7fffffffu; }

constexpr uint32_t every_key = 0x80000000u;

// Keys are chosen in two steps: by their upper 16 bits, then by their lower 15.
constexpr int low_bits = 15;
constexpr int64_t high_bins = int64_t{1} << 16;
constexpr int64_t low_bins = int64_t{1} << low_bits;

// The bin in which the wanted-th largest key lies, and how many of its keys are wanted.
struct Bin {
  int64_t bin;
  int64_t wanted;
};

// wanted >= 1 and at most the sum of the counts.
template <typename Count>
L4_INLINE Bin find_bin(const Count* counts, int64_t bins, int64_t wanted) {
  int64_t bin = bins - 1;
  while (bin > 0 && static_cast<int64_t>(counts[bin]) < wanted) wanted -= static_cast<int64_t>(counts[bin--]);
  return {bin, wanted};
}

// The first of the elements with a certain key that is dropped, if the first `wanted` of them are kept and more follow:
// counts holds how many there are in each chunk of elements, has_key(i) tells one.
template <typename HasKey>
L4_INLINE int64_t first_dropped(const uint32_t* counts, int64_t chunk, int64_t wanted, HasKey has_key) {
  int64_t c = 0;
  while (static_cast<int64_t>(counts[c]) <= wanted) wanted -= static_cast<int64_t>(counts[c++]);
  int64_t i = c * chunk;
  while (!has_key(i) || wanted-- > 0) i++;
  return i;
}

// What is kept of the largest elements: keys above `key`, and of those equal to it the ones before `index`.
struct Cut {
  uint32_t key;
  int64_t index;

  L4_HD bool keeps(float value, int64_t at) const {
    uint32_t own = magnitude_key(value);
    return own > key || (own == key && at < index);
  }
};

// Element `index` (row by row) of a tensor, after pruning.
L4_INLINE float pruned_element(const TaskTensor& tensor, const Cut& cut, float value, int64_t index) {
  if (tensor.pruning == Pruning::largest) return cut.keeps(value, index) ? value : 0.0f;
  if (tensor.pruning == Pruning::random) {
    return philox_word(tensor.seed, tensor.stream, index) < tensor.keep_below ? value / tensor.divisor : 0.0f;
  }
  return value;
}

L4_INLINE float vote(Election election, float value) {
  if (election == Election::total) return value;
  return (value > 0.0f ? 1.0f : 0.0f) - (value < 0.0f ? 1.0f : 0.0f);
}

// 1 if the value has the elected sign, else 0, by which its term is multiplied: a NaN stays one.
L4_INLINE float agrees(float value, float votes) { return (votes >= 0.0f ? value > 0.0f : value < 0.0f) ? 1.0f : 0.0f; }

// The combination of one element; `of(i)` gives the pruned element of tensor i.
template <typename Of>
L4_INLINE float combined_element(const TaskTensor* tensors, int64_t count, Election election, Of of) {
  float sum = 0.0f;
  if (election == Election::none) {
    for (int64_t i = 0; i < count; i++) sum = sum + tensors[i].weight * of(i);
    return sum;
  }
  float votes = 0.0f;
  for (int64_t i = 0; i < count; i++) votes = votes + vote(election, of(i));
  float number = 0.0f;
  for (int64_t i = 0; i < count; i++) {
    float value = of(i);
    float agreed = agrees(value, votes);
    sum = sum + tensors[i].weight * value * agreed;
    number = number + agreed;
  }
  return sum / (number > 1.0f ? number : 1.0f);
}

}  // namespace lora4j
