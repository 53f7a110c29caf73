// low_rank_update: the bits of its definition, which is within rounding of the double result; rows apart from each other.
#include "check.h"

namespace {

using namespace test;

// Lanes: 16; tiles: 6 rows, 8, 16 or 64 columns; units: 8 ranks, 96 rows, at most 512 columns.
const std::vector<int64_t> batches = {0, 1, 2, 4, 5, 6, 7, 13, 40, 97, 200};
const std::vector<int64_t> widths = {1, 7, 8, 9, 15, 16, 17, 31, 33, 63, 64, 65, 130};
const std::vector<int64_t> ranks = {1, 2, 3, 4, 5, 8, 9, 17};

float product(const Matrix& a, int64_t k, const Matrix& x, int64_t t) {
  float lane[lora4j::definition_lanes];
  for (int l = 0; l < lora4j::definition_lanes; l++) lane[l] = lora4j::lane_sum(a, k, x, t, l);
  for (int half = lora4j::definition_lanes / 2; half > 0; half /= 2) {
    for (int l = 0; l < half; l++) lane[l] += lane[l + half];
  }
  return lane[0];
}

void check_update(unsigned seed, Buffer& y, Buffer& x, const std::vector<int32_t>& rows, Updates& adapters) {
  Matrix out = y.view();
  Matrix in = x.view();
  std::vector<float> bits;
  for (int64_t t = 0; t < out.rows; t++) {
    int32_t index = rows[static_cast<size_t>(t)];
    if (index < 0) {
      for (int64_t o = 0; o < out.cols; o++) bits.push_back(out.at(t, o));
      continue;
    }
    const lora4j::LowRank& adapter = adapters.views[static_cast<size_t>(index)];
    std::vector<float> v;
    for (int64_t k = 0; k < adapter.rank(); k++) v.push_back(product(adapter.a, k, in, t));
    for (int64_t o = 0; o < out.cols; o++) {
      double value = out.at(t, o);
      double magnitude = std::abs(value);
      for (int64_t k = 0; k < adapter.rank(); k++) {
        double b = static_cast<double>(adapter.scale) * adapter.b.at(o, k);
        for (int64_t i = 0; i < in.cols; i++) {
          double term = b * adapter.a.at(k, i) * in.at(t, i);
          value += term;
          magnitude += std::abs(term);
        }
      }
      unsigned char memory[4];
      lora4j::store(memory, 0, out.type, lora4j::updated_element(out.at(t, o), adapter, v.data(), o));
      float stored = lora4j::load(memory, 0, out.type);
      double terms = static_cast<double>(in.cols + 16 + adapter.rank() + 3);
      CHECK(std::abs(stored - value) <= bound(terms, magnitude, value, out.type), "seed %u (%ld, %ld): %g, expected %g",
            seed, t, o, stored, value);
      bits.push_back(stored);
    }
  }
  int code = l4_low_rank_update(y.get(), x.get(), rows.data(), adapters.list.data(), adapters.count(), &cpu);
  CHECK(code == L4_OK, "seed %u", seed);
  std::vector<float> got = values(y);
  for (size_t i = 0; i < bits.size(); i++) {
    CHECK(lora4j::bits_of(got[i]) == lora4j::bits_of(bits[i]), "seed %u, element %zu: %g, defined as %g", seed, i, got[i],
          bits[i]);
  }
}

void random_shapes() {
  for (unsigned seed = 0; seed < 100; seed++) {
    Random random(seed);
    int64_t count = random.pick(batches);
    int64_t in = random.pick(widths);
    int64_t out = random.pick(widths);
    Buffer y = random.matrix(count, out);
    Buffer x = random.matrix(count, in);
    Updates adapters;
    for (int64_t a = random.below(5); a > 0; a--) adapters.add(random, random.pick(ranks), in, out);
    std::vector<int32_t> rows;
    for (int64_t t = 0; t < count; t++) rows.push_back(static_cast<int32_t>(random.below(adapters.count() + 1) - 1));
    check_update(seed, y, x, rows, adapters);
  }
}

// More outputs than a unit, a rank that narrows units to one tile, and no input at all.
void edge_shapes() {
  Random random(900);
  Buffer y = random.matrix(3, 1100, DType::bf16, contiguous);
  Buffer x = random.matrix(3, 40, DType::f16, contiguous);
  Updates adapters;
  adapters.add(random, 300, 40, 1100);
  adapters.add(random, 2, 40, 1100);
  check_update(900, y, x, {1, 0, 0}, adapters);
  Buffer none = random.matrix(2, 0, DType::f32, contiguous);
  Buffer z = random.matrix(2, 9, DType::f32, contiguous);
  Updates hollow;
  hollow.add(random, 2, 0, 9);
  check_update(901, z, none, {0, -1}, hollow);
}

// Many adapters of one or two rows, B with contiguous columns and not: groups that are one piece of work, and others.
void many_adapters() {
  for (unsigned seed = 0; seed < 12; seed++) {
    Random random(920 + seed);
    int64_t in = random.pick(widths);
    int64_t out = random.pick({1, 9, 64, 200, 641});
    DType type = random.type();
    Updates adapters;
    for (int64_t a = 0; a < 11; a++) {
      int64_t rank = random.pick(ranks);
      adapters.add(random, random.matrix(rank, in, random.type(), contiguous),
                   random.matrix(out, rank, random.type(), a % 4 == 3 ? contiguous : transposed));
    }
    std::vector<int32_t> rows;
    for (int64_t t = 0; t < 19; t++) rows.push_back(static_cast<int32_t>(t < 13 ? t % 11 : random.below(12) - 1));
    Buffer y = random.matrix(19, out, type, seed % 3 ? contiguous : rows_apart);
    Buffer x = random.matrix(19, in);
    check_update(920 + seed, y, x, rows, adapters);
    Buffer one = random.matrix(1, out, type, contiguous);
    Buffer z = random.matrix(1, in);
    check_update(940 + seed, one, z, {static_cast<int32_t>(random.below(11))}, adapters);
  }
}

void threads_do_not_matter() {
  Random random(950);
  Updates adapters;
  adapters.add(random, 16, 520, 300);
  adapters.add(random, 5, 520, 300);
  Buffer y = random.matrix(150, 300, DType::bf16, contiguous);
  Buffer x = random.matrix(150, 520, DType::bf16, contiguous);
  std::vector<int32_t> rows;
  for (int64_t t = 0; t < 150; t++) rows.push_back(static_cast<int32_t>(random.below(3) - 1));
  std::vector<unsigned char> start = y.bytes;
  std::vector<unsigned char> first;
  for (int threads : {1, 2, 5}) {
    y.bytes = start;
    CHECK(l4_set_threads(threads) == L4_OK, "threads");
    CHECK(l4_low_rank_update(y.get(), x.get(), rows.data(), adapters.list.data(), 2, &cpu) == L4_OK, "threads");
    CHECK(first.empty() || first == y.bytes, "%d threads give other bits", threads);
    first = y.bytes;
  }
  l4_set_threads(0);
}

}  // namespace

int main(int argc, char** argv) {
  use_instruction_set(argc, argv);
  random_shapes();
  edge_shapes();
  many_adapters();
  threads_do_not_matter();
  return 0;
}
