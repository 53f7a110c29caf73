// Dequantizing on the CPU: elements go through a float32 buffer, a block of one scale at a time; a byte of 4-bit codes
// gives its two values at once.
#include <atomic>
#include <cstring>

#include "cpu/cpu.h"
#include "cpu/kernels.h"
#include "cpu/thread.h"
#include "cpu/tiles.h"

namespace lora4j {
namespace {

constexpr int64_t tile = 2048;
constexpr int64_t range = 32 * tile;

int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

struct Pairs {
  float value[256][2];

  explicit Pairs(const Quantized& q) {
    for (int byte = 0; byte < 256; byte++) {
      value[byte][0] = q.values[byte >> 4];
      value[byte][1] = q.values[byte & 15];
    }
  }
};

// Elements [first, first + count) of the weight, counted row by row.
void four_bits(const Quantized& q, const Pairs& pairs, int64_t first, int64_t count, float* out) {
  const auto* bytes = static_cast<const uint8_t*>(q.packed);
  for (int64_t e = first; e < first + count;) {
    int64_t block = e / q.block_size;
    int64_t end = least((block + 1) * q.block_size, first + count);
    float scale = block_scale(q, block);
    if (e % 2) {
      *out++ = pairs.value[bytes[e / 2]][1] * scale;
      e++;
    }
    for (; e + 1 < end; e += 2, out += 2) {
      const float* pair = pairs.value[bytes[e / 2]];
      out[0] = pair[0] * scale;
      out[1] = pair[1] * scale;
    }
    if (e < end) {
      *out++ = pairs.value[bytes[e / 2]][0] * scale;
      e++;
    }
  }
}

void eight_bits(const Quantized& q, int64_t first, int64_t count, float* out) {
  const auto* bytes = static_cast<const int8_t*>(q.packed);
  for (int64_t e = first; e < first + count;) {
    int64_t end = least((e / q.cols + 1) * q.cols, first + count);
    float scale = q.scales[e / q.cols];
    for (; e < end; e++) {
      float product = static_cast<float>(bytes[e]) * scale;
      *out++ = product * int8_step;
    }
  }
}

}  // namespace

bool dequantize_cpu(const DequantizeParams& params, int threads) {
  const Elementwise& table = elementwise();
  const Quantized& q = params.weight;
  int64_t elements = params.w.rows * params.w.cols;
  int64_t before = params.first_row * q.cols;
  int64_t ranges = ceil_div(elements, range);
  int team = team_size(threads, ranges, static_cast<double>(elements));
  Pairs pairs(q);
  std::atomic<bool> failed{false};
#pragma omp parallel num_threads(team)
  {
    FloatMode mode;
    thread_local Scratch values;
    float* buffer = values.get(tile);
    if (!buffer) failed = true;
#pragma omp barrier
    if (!failed) {
#pragma omp for schedule(static)
      for (int64_t r = 0; r < ranges; r++) {
        int64_t end = least((r + 1) * range, elements);
        for (int64_t first = r * range; first < end; first += tile) {
          int64_t n = least(tile, end - first);
          if (q.bits == 4) {
            four_bits(q, pairs, before + first, n, buffer);
          } else {
            eight_bits(q, before + first, n, buffer);
          }
          store_tile(table, buffer, first, n, params.w);
        }
      }
    }
  }
  return !failed;
}

}  // namespace lora4j
