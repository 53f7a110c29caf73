// The CUDA kernels themselves, run as host code over fibers: each variant gives the bits of the CPU kernels.
#include "check.h"
#include "cuda/merge_dispatch.h"
#include "cuda/update_dispatch.h"

namespace {

using namespace test;
using lora4j::LowRankUpdateParams;
using lora4j::MergeParams;
using lora4j::Variant;

constexpr Variant variants[] = {Variant::plain, Variant::tiled, Variant::fast};

const char* name_of(Variant variant) {
  return variant == Variant::plain ? "plain" : variant == Variant::tiled ? "tiled" : "fast";
}

void same_bits(Buffer& got, Buffer& expected, const char* what, Variant variant, unsigned seed) {
  std::vector<float> a = values(got), b = values(expected);
  for (size_t i = 0; i < a.size(); i++) {
    CHECK(lora4j::bits_of(a[i]) == lora4j::bits_of(b[i]), "%s, %s, seed %u, element %zu: %g, on the CPU %g", what,
          name_of(variant), seed, i, static_cast<double>(a[i]), static_cast<double>(b[i]));
  }
}

// The fast merge: half a step of the type from the exact sum, and 2^-15 or 2^-21 of what was added.
void near(Buffer& got, Buffer& from, Updates& updates, const std::vector<float>& factors, unsigned seed) {
  lora4j::Matrix w = got.view(), source = from.view();
  for (int64_t i = 0; i < w.rows; i++) {
    for (int64_t j = 0; j < w.cols; j++) {
      double exact = static_cast<double>(source.at(i, j)), added = 0.0;
      for (const lora4j::LowRank& update : updates.views) {
        double scale = static_cast<double>(update.scale);
        for (int64_t k = 0; k < update.rank(); k++) {
          double product = scale * static_cast<double>(update.b.at(i, k)) * static_cast<double>(update.a.at(k, j));
          exact += product;
          added += std::fabs(product);
        }
      }
      if (!factors.empty()) {
        exact *= static_cast<double>(factors[static_cast<size_t>(i)]);
        added *= static_cast<double>(factors[static_cast<size_t>(i)]);
      }
      double value = static_cast<double>(w.at(i, j));
      if (!std::isfinite(exact)) {
        CHECK(!std::isfinite(value), "fast, seed %u, element %ld, %ld: %g", seed, i, j, value);
        continue;
      }
      double step = w.type == DType::f32 ? 0x1p-23 : w.type == DType::bf16 ? 0x1p-8 : 0x1p-11;
      double limit = step * std::fabs(exact) * 1.01 + (w.type == DType::f32 ? 0x1p-20 : 0x1p-15) * added + 1e-7;
      CHECK(std::fabs(value - exact) <= limit, "fast, seed %u, element %ld, %ld: %g, exact %g", seed, i, j, value, exact);
    }
  }
}

// Sizes on both sides of a tile and of a slice; aligned to 16 bytes for the wide paths every second time.
void merges() {
  const std::vector<int64_t> rows = {1, 3, 63, 64, 65, 128, 130}, cols = {1, 7, 8, 127, 128, 129, 200, 256};
  const std::vector<int64_t> ranks = {1, 2, 7, 8, 15, 16, 17, 32, 40};
  for (unsigned seed = 0; seed < 80; seed++) {
    Random random(3000 + seed);
    bool aligned = seed % 2;
    int64_t out = random.pick(rows), in = random.pick(cols);
    DType type = random.stored();
    Buffer from = random.matrix(out, in, type, aligned ? contiguous : random.layout());
    Updates updates;
    for (int64_t u = 1 + random.below(3); u > 0; u--) {
      if (aligned) {
        updates.add(random, random.below(2) ? 16 : 24, in, out, contiguous);
      } else {
        updates.add(random, random.pick(ranks), in, out);
      }
    }
    bool spoilt = seed % 5 == 0;
    if (spoilt) from.view().set(random.below(out), random.below(in), seed % 2 ? INFINITY : NAN);
    std::vector<float> factors = random.factors(out);
    const float* f = factors.empty() ? nullptr : factors.data();
    Buffer expected = from;
    int code = l4_merge_checked(expected.get(), nullptr, updates.list.data(), updates.count(), f, nullptr, &cpu);
    CHECK(code == L4_OK, "seed %u", seed);
    for (Variant variant : variants) {
      bool apart = random.below(2);
      Buffer w = apart ? random.matrix(out, in, type, aligned ? contiguous : random.layout()) : from;
      int32_t flag = 0;
      bool asked = spoilt || random.below(2);
      MergeParams params = {w.view(), apart ? from.view() : w.view(), updates.views.data(), updates.count(),
                            {f, false}, asked ? &flag : nullptr, false};
      CHECK(lora4j::merge_with(params, variant, cuda_on_cpu::Launch{}) == 0, "seed %u", seed);
      if (variant == Variant::fast && type != DType::f8) {
        near(w, from, updates, factors, seed);
      } else {
        same_bits(w, expected, "merge", variant, seed);
      }
      CHECK(flag == (spoilt ? 1 : 0), "%s, seed %u: flag %d", name_of(variant), seed, flag);
    }
  }
}

void no_update() {
  Random random(3500);
  Buffer from = random.matrix(5, 40, DType::bf16, transposed);
  Buffer w = random.matrix(5, 40, DType::bf16, contiguous);
  from.view().set(2, 3, INFINITY);
  int32_t flag = 0;
  MergeParams params = {w.view(), from.view(), nullptr, 0, {}, &flag, false};
  CHECK(lora4j::merge_with(params, Variant::tiled, cuda_on_cpu::Launch{}) == 0, "no update");
  same_bits(w, from, "copy", Variant::tiled, 0);
  CHECK(flag == 1, "flag %d", flag);
}

void updates() {
  const std::vector<int64_t> widths = {1, 5, 16, 33, 128, 520, 1040, 1100}, outs = {1, 3, 64, 257, 300};
  const std::vector<int64_t> ranks = {1, 4, 8, 9, 16, 33, 72};
  for (unsigned seed = 0; seed < 24; seed++) {
    Random random(4000 + seed);
    bool aligned = seed % 2;
    int64_t in = aligned ? (random.below(2) ? 1040 : 128) : random.pick(widths);
    int64_t out = random.pick(outs), count = 1 + random.below(seed % 4 == 3 ? 40 : 6);
    Buffer x = random.matrix(count, in, random.type(), random.below(3) ? contiguous : rows_apart);
    Buffer y = random.matrix(count, out, random.type(), random.layout());
    Updates adapters;
    for (int64_t a = 1 + random.below(4); a > 0; a--) {
      adapters.add(random, aligned ? 16 : random.pick(ranks), in, out, random.below(8) ? contiguous : rows_apart);
    }
    std::vector<int32_t> rows;
    for (int64_t t = 0; t < count; t++) rows.push_back(static_cast<int32_t>(random.below(adapters.count() + 1) - 1));
    Buffer expected = y;
    int code = l4_low_rank_update(expected.get(), x.get(), rows.data(), adapters.list.data(), adapters.count(), &cpu);
    CHECK(code == L4_OK, "seed %u", seed);
    for (Variant variant : variants) {
      Buffer got = y;
      LowRankUpdateParams params = {got.view(), x.view(), rows.data(), adapters.views.data(), adapters.count()};
      CHECK(lora4j::low_rank_update_with(params, variant, L4_CLUSTER, cuda_on_cpu::Launch{}) == 0, "seed %u", seed);
      same_bits(got, expected, "update", variant, seed);
    }
  }
}

}  // namespace

int main() {
  merges();
  no_update();
  updates();
  return 0;
}
