// combine on the CPU. The largest elements of a tensor are found in two steps. A first reading counts the upper 16 bits
// of every key, which gives the bin of the smallest key that is kept. The second reading combines: it decides every
// element outside of that bin, and puts the few inside on a list, with the values of all tensors. From the lists the
// exact cut is found, and their elements are combined last. So each tensor is read twice, and once if nothing is
// selected. Memory beside that: 8 bytes and a float for each tensor, for each element on a list.
#include <algorithm>
#include <atomic>
#include <functional>
#include <new>
#include <vector>

#include "cpu/cpu.h"
#include "cpu/elementwise.h"
#include "cpu/kernels.h"
#include "cpu/thread.h"
#include "cpu/tiles.h"

namespace lora4j {
namespace {

constexpr int64_t tile = 2048;
constexpr int64_t range = 32 * tile;
constexpr int64_t least_to_count = 1 << 13;  // below, all elements go on the list

int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

// What the first reading says of a tensor: keys from `below` on are kept, those under `from` are not, and of those
// between `wanted` are kept.
struct Selection {
  uint32_t from = 0;
  uint32_t below = 0;
  int64_t wanted = 0;

  bool open(uint32_t key) const { return key >= from && key < below; }
};

// Elements of a range that some selection leaves open: their numbers, and the values of all tensors side by side.
struct Open {
  std::vector<int64_t> index;
  std::vector<float> values;
};

class Combination {
 public:
  Combination(const CombineParams& params, int threads)
      : params_(params),
        table_(elementwise()),
        elements_(params.y.rows * params.y.cols),
        ranges_(ceil_div(elements_, range)),
        team_(team_size(threads, ranges_, 4.0 * static_cast<double>(elements_ * params.count))),
        selections_(static_cast<size_t>(params.count)),
        open_(static_cast<size_t>(ranges_)) {}

  bool run() {
    for (int64_t t = 0; t < params_.count; t++) {
      if (params_.tensors[t].pruning == Pruning::largest && !select(t)) return false;
    }
    if (!combine_ranges()) return false;
    combine_open();
    return true;
  }

 private:
  bool select(int64_t t) {
    const TaskTensor& tensor = params_.tensors[t];
    Selection& selection = selections_[static_cast<size_t>(t)];
    if (tensor.kept == elements_) return true;
    if (tensor.kept == 0) {
      selection = {every_key, every_key, 0};
    } else if (elements_ < least_to_count) {
      selection = {1, every_key, tensor.kept};
    } else {
      std::vector<int64_t> bins(static_cast<size_t>(high_bins), 0);
      if (!count_keys(tensor.x, bins)) return false;
      Bin found = find_bin(bins.data(), high_bins, tensor.kept);
      auto from = static_cast<uint32_t>(found.bin << low_bits);
      bool all = found.wanted == bins[static_cast<size_t>(found.bin)];
      // Whether a zero is kept makes no difference, so none is on the list.
      selection = {std::max(from, 1u), all ? from : from + (1u << low_bits), found.wanted};
    }
    return true;
  }

  bool count_keys(const Matrix& x, std::vector<int64_t>& bins) {
    std::atomic<bool> failed{false};
#pragma omp parallel num_threads(team_)
    {
      FloatMode mode;
      thread_local Scratch counts, values;
      auto* own = reinterpret_cast<uint32_t*>(counts.get(high_bins));
      float* buffer = values.get(tile);
      if (!own || !buffer) failed = true;
      if (own) std::fill(own, own + high_bins, 0u);
#pragma omp barrier
      if (!failed) {
#pragma omp for schedule(static)
        for (int64_t r = 0; r < ranges_; r++) {
          int64_t end = least((r + 1) * range, elements_);
          for (int64_t first = r * range; first < end; first += tile) {
            int64_t n = least(tile, end - first);
            load_tile(table_, x, first, n, buffer);
            table_.count_keys(buffer, n, own);
          }
          // A count of 32 bits holds 2^32 elements: emptied long before.
          if (r % 1024 == 1023) add_counts(own, bins);
        }
        add_counts(own, bins);
      }
    }
    return !failed;
  }

  static void add_counts(uint32_t* own, std::vector<int64_t>& bins) {
#pragma omp critical(l4_bins)
    for (size_t b = 0; b < bins.size(); b++) bins[b] += own[b];
    std::fill(own, own + bins.size(), 0u);
  }

  bool combine_ranges() {
    std::atomic<bool> failed{false};
#pragma omp parallel num_threads(team_)
    {
      FloatMode mode;
      thread_local Scratch values;
      float* buffer = values.get((params_.count + 1) * tile);
      if (!buffer) failed = true;
#pragma omp barrier
      if (!failed) {
#pragma omp for schedule(dynamic, 1)
        for (int64_t r = 0; r < ranges_; r++) {
          try {
            combine_range(r, buffer);
          } catch (const std::bad_alloc&) {
            failed = true;
          }
        }
      }
    }
    return !failed;
  }

  void combine_range(int64_t r, float* buffer) {
    uint8_t undecided[tile] = {};
    float* out = buffer + params_.count * tile;
    int64_t end = least((r + 1) * range, elements_);
    for (int64_t first = r * range; first < end; first += tile) {
      int64_t n = least(tile, end - first);
      for (int64_t t = 0; t < params_.count; t++) {
        const TaskTensor& tensor = params_.tensors[t];
        const Selection& selection = selections_[static_cast<size_t>(t)];
        float* own = buffer + t * tile;
        load_tile(table_, tensor.x, first, n, own);
        if (tensor.pruning == Pruning::largest) {
          table_.keep_largest(own, n, selection.from, selection.below, undecided);
        } else if (tensor.pruning == Pruning::random) {
          table_.keep_random(own, first, n, tensor);
        }
      }
      keep_open(open_[static_cast<size_t>(r)], undecided, first, n, buffer);
      table_.combine(buffer, tile, n, params_.tensors, params_.count, params_.election, out);
      store_tile(table_, out, first, n, params_.y);
    }
  }

  // Puts the marked elements on the list and takes their marks away.
  void keep_open(Open& open, uint8_t* undecided, int64_t first, int64_t n, const float* buffer) const {
    for (int64_t i = 0; i < n; i++) {
      if (!undecided[i]) continue;
      undecided[i] = 0;
      open.index.push_back(first + i);
      for (int64_t t = 0; t < params_.count; t++) open.values.push_back(buffer[t * tile + i]);
    }
  }

  // The cut of tensor t among the elements on the lists: those it drops become zero.
  void decide(int64_t t) {
    const Selection& selection = selections_[static_cast<size_t>(t)];
    std::vector<uint32_t> keys;
    for_open(t, [&](const float& value) {
      if (selection.open(magnitude_key(value))) keys.push_back(magnitude_key(value));
    });
    if (selection.wanted >= static_cast<int64_t>(keys.size())) return;
    auto smallest = keys.begin() + selection.wanted - 1;
    std::nth_element(keys.begin(), smallest, keys.end(), std::greater<uint32_t>());
    uint32_t cut = *smallest;
    int64_t equal = selection.wanted - std::count_if(keys.begin(), smallest, [&](uint32_t key) { return key > cut; });
    for_open(t, [&](float& value) {
      uint32_t key = magnitude_key(value);
      if (selection.open(key) && (key < cut || (key == cut && equal-- <= 0))) value = 0.0f;
    });
  }

  template <typename Each>
  void for_open(int64_t t, const Each& each) {
    for (Open& open : open_) {
      for (size_t i = static_cast<size_t>(t); i < open.values.size(); i += static_cast<size_t>(params_.count)) {
        each(open.values[i]);
      }
    }
  }

  void combine_open() {
    FloatMode mode;
    for (int64_t t = 0; t < params_.count; t++) {
      const Selection& selection = selections_[static_cast<size_t>(t)];
      if (selection.from < selection.below) decide(t);
    }
    for (const Open& open : open_) {
      for (size_t i = 0; i < open.index.size(); i++) {
        const float* own = open.values.data() + static_cast<int64_t>(i) * params_.count;
        float value = combined_element(params_.tensors, params_.count, params_.election, [&](int64_t t) { return own[t]; });
        params_.y.set(open.index[i] / params_.y.cols, open.index[i] % params_.y.cols, value);
      }
    }
  }

  const CombineParams& params_;
  const Elementwise& table_;
  int64_t elements_;
  int64_t ranges_;
  int team_;
  std::vector<Selection> selections_;
  std::vector<Open> open_;
};

}  // namespace

bool combine_cpu(const CombineParams& params, int threads) { return Combination(params, threads).run(); }

}  // namespace lora4j
