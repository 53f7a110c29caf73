// merge: the bits of its definition, which is within rounding of the double result, on sizes around every loop's edges.
#include "check.h"

namespace {

using namespace test;

// Register tiles: 6 rows, 8, 16 or 64 columns; blocks: 192 rows, at most 1024 columns.
const std::vector<int64_t> rows = {1, 5, 6, 7, 12, 13, 191, 192, 193};
const std::vector<int64_t> cols = {1, 7, 8, 9, 15, 16, 17, 63, 64, 65, 127, 130};
const std::vector<int64_t> ranks = {1, 2, 3, 8, 17};

void check_merge(unsigned seed, Buffer& w, Updates& updates, const std::vector<float>& factors = {}) {
  const float* f = factors.empty() ? nullptr : factors.data();
  Matrix view = w.view();
  std::vector<float> bits;
  for (int64_t i = 0; i < view.rows; i++) {
    for (int64_t j = 0; j < view.cols; j++) {
      double value = view.at(i, j);
      double magnitude = std::abs(value);
      double terms = 2 * static_cast<double>(updates.count());
      for (const lora4j::LowRank& update : updates.views) {
        terms += static_cast<double>(update.rank());
        for (int64_t k = 0; k < update.rank(); k++) {
          double product = static_cast<double>(update.scale) * update.b.at(i, k) * update.a.at(k, j);
          value += product;
          magnitude += std::abs(product);
        }
      }
      if (f) {
        value *= static_cast<double>(f[i]);
        magnitude *= static_cast<double>(f[i]);
        terms++;
      }
      float defined = lora4j::merged_element(view, updates.views.data(), updates.count(), {f, false}, i, j);
      double stored;
      {
        unsigned char memory[4];
        lora4j::store(memory, 0, view.type, defined);
        stored = lora4j::load(memory, 0, view.type);
      }
      CHECK(std::abs(stored - value) <= bound(terms, magnitude, value, view.type), "seed %u (%ld, %ld): %g, expected %g",
            seed, i, j, stored, value);
      bits.push_back(static_cast<float>(stored));
    }
  }
  int code = f ? l4_merge_checked(w.get(), nullptr, updates.list.data(), updates.count(), f, nullptr, &cpu)
               : l4_merge(w.get(), updates.list.data(), updates.count(), &cpu);
  CHECK(code == L4_OK, "seed %u", seed);
  std::vector<float> got = values(w);
  for (size_t i = 0; i < bits.size(); i++) {
    CHECK(lora4j::bits_of(got[i]) == lora4j::bits_of(bits[i]), "seed %u, element %zu: %g, defined as %g", seed, i, got[i],
          bits[i]);
  }
}

void random_shapes() {
  for (unsigned seed = 0; seed < 200; seed++) {
    Random random(seed);
    int64_t out = random.pick(rows);
    int64_t in = random.pick(cols);
    Buffer w = random.matrix(out, in, random.stored(), random.layout());
    Updates updates;
    for (int64_t u = 1 + random.below(3); u > 0; u--) updates.add(random, random.pick(ranks), in, out);
    check_merge(seed, w, updates, random.factors(out));
  }
}

// More columns than a block, and a rank that makes blocks as narrow as a tile.
void large_shapes() {
  Random random(500);
  Buffer wide = random.matrix(7, 1100, DType::bf16, contiguous);
  Updates few;
  few.add(random, 2, 1100, 7);
  check_merge(500, wide, few);
  Buffer deep = random.matrix(13, 130, DType::f16, transposed);
  Updates many;
  many.add(random, 1100, 130, 13);
  check_merge(501, deep, many);
}

void nothing_to_do() {
  Random random(600);
  Buffer w = random.matrix(3, 4, DType::f16, contiguous);
  std::vector<unsigned char> before = w.bytes;
  CHECK(l4_merge(w.get(), nullptr, 0, &cpu) == L4_OK, "no update");
  CHECK(w.bytes == before, "no update must leave w alone");
  Buffer empty = random.matrix(0, 4, DType::f32, contiguous);
  Updates updates;
  updates.add(random, 2, 4, 0);
  CHECK(l4_merge(empty.get(), updates.list.data(), 1, &cpu) == L4_OK, "no rows");
}

// Infinities, subnormals, overflow and every kind of NaN, as the definition rounds them.
void special_values() {
  const float special[] = {0.0f, -0.0f, INFINITY, -INFINITY, NAN, -NAN, 1e-41f, -1e-41f, 3.4e38f, 65519.0f, 65520.0f, 5.9e-8f};
  for (int type = 0; type < 4; type++) {
    Random random(700);
    Buffer w = random.matrix(12, 80, static_cast<DType>(type), contiguous);
    Updates updates;
    updates.add(random, 3, 80, 12);
    for (int64_t i = 0; i < 12; i++) {
      for (int64_t j = 0; j < 80; j += 7) w.view().set(i, j, special[i]);
      updates.views[0].b.set(i, 0, special[(i + 5) % 12]);
    }
    std::vector<uint32_t> bits;
    for (int64_t i = 0; i < 12; i++) {
      for (int64_t j = 0; j < 80; j++) {
        unsigned char memory[4];
        lora4j::store(memory, 0, static_cast<DType>(type), lora4j::merged_element(w.view(), updates.views.data(), 1, {}, i, j));
        bits.push_back(lora4j::bits_of(lora4j::load(memory, 0, static_cast<DType>(type))));
      }
    }
    CHECK(l4_merge(w.get(), updates.list.data(), 1, &cpu) == L4_OK, "special values");
    std::vector<float> got = values(w);
    for (size_t i = 0; i < bits.size(); i++) {
      CHECK(lora4j::bits_of(got[i]) == bits[i], "type %d, element %zu: %08x, defined as %08x", type, i,
            lora4j::bits_of(got[i]), bits[i]);
    }
  }
}

// The first call of all, before there is scratch memory.
void copy_alone() {
  Random random(790);
  Buffer from = random.matrix(5, 9, DType::bf16, columns_apart);
  Buffer w = random.matrix(5, 9, DType::bf16, contiguous);
  int32_t flag = 0;
  CHECK(l4_merge_checked(w.get(), from.get(), nullptr, 0, nullptr, &flag, &cpu) == L4_OK && flag == 0, "no update");
  CHECK(values(w) == values(from), "no update copies");
}

// From another matrix of any layout, which stays as it is; the flag is set if and only if a written element is not
// finite, wherever it is.
void checked() {
  for (unsigned seed = 800; seed < 860; seed++) {
    Random random(seed);
    int64_t out = random.pick(rows);
    int64_t in = random.pick(cols);
    DType type = random.stored();
    Buffer from = random.matrix(out, in, type, random.layout());
    Updates updates;
    for (int64_t u = random.below(3); u > 0; u--) updates.add(random, random.pick(ranks), in, out);
    int64_t row = random.below(out), col = random.below(in);
    bool spoilt = random.below(2);
    if (spoilt) from.view().set(row, col, random.below(2) ? INFINITY : NAN);  // a NaN in bytes
    std::vector<unsigned char> original = from.bytes;
    Buffer expected = random.matrix(out, in, type, contiguous);
    for (int64_t i = 0; i < out; i++) {
      for (int64_t j = 0; j < in; j++) expected.view().set(i, j, from.view().at(i, j));
    }
    CHECK(l4_merge(expected.get(), updates.list.data(), updates.count(), &cpu) == L4_OK, "seed %u", seed);
    Buffer w = random.matrix(out, in, type, random.layout());
    std::vector<unsigned char> around = w.bytes;
    for (int64_t i = 0; i < out; i++) {
      for (int64_t j = 0; j < in; j++) lora4j::store(around.data(), i * w.matrix.row_stride + j * w.matrix.col_stride, type, expected.view().at(i, j));
    }
    int32_t flag = 0;
    int code = l4_merge_checked(w.get(), from.get(), updates.list.data(), updates.count(), nullptr, &flag, &cpu);
    CHECK(code == L4_OK && flag == (spoilt ? 1 : 0), "seed %u: flag %d, spoilt %d", seed, flag, spoilt);
    CHECK(from.bytes == original, "seed %u: from changed", seed);
    CHECK(w.bytes == around, "seed %u: not what merge gives, or memory between elements changed", seed);
    flag = 7;
    code = l4_merge_checked(from.get(), nullptr, updates.list.data(), updates.count(), nullptr, &flag, &cpu);
    CHECK(code == L4_OK && flag == (spoilt ? 1 : 7), "seed %u: flag %d in place, spoilt %d", seed, flag, spoilt);
    std::vector<float> in_place = values(from), apart = values(expected);
    for (size_t i = 0; i < apart.size(); i++) {
      CHECK(lora4j::bits_of(in_place[i]) == lora4j::bits_of(apart[i]), "seed %u, element %zu", seed, i);
    }
  }
}

// A sum that leaves the range of the type is found after rounding to it.
void overflow_is_found() {
  Random random(870);
  Buffer w = random.matrix(6, 20, DType::f16, contiguous);
  w.view().set(5, 19, 65504.0f);
  Updates updates;
  updates.add(random, 1, 20, 6);
  for (int64_t i = 0; i < 6; i++) updates.views[0].b.set(i, 0, 0.0f);
  updates.views[0].b.set(5, 0, 1.0f);
  updates.views[0].a.set(0, 19, 16.0f);
  updates.list[0].scale = 1.0;
  int32_t flag = 0;
  CHECK(l4_merge_checked(w.get(), nullptr, updates.list.data(), 1, nullptr, &flag, &cpu) == L4_OK && flag == 1, "65520 in f16");
}

void refused_checks() {
  Random random(880);
  Buffer w = random.matrix(3, 4, DType::f32, contiguous);
  Buffer other = random.matrix(3, 4, DType::bf16, contiguous);
  Buffer shorter = random.matrix(2, 4, DType::f32, contiguous);
  l4_matrix shifted = *w.get();
  shifted.rows = 2;
  l4_matrix late = shifted;
  late.data = static_cast<float*>(late.data) + 4;
  int32_t flag = 0;
  void* odd = reinterpret_cast<char*>(&flag) + 1;
  CHECK(l4_merge_checked(w.get(), other.get(), nullptr, 0, nullptr, &flag, &cpu) == L4_BAD_ARGUMENT, "another type");
  CHECK(std::strstr(l4_last_error(), "l4_merge_checked: from is (3, 4) of dtype 1"), "%s", l4_last_error());
  CHECK(l4_merge_checked(w.get(), shorter.get(), nullptr, 0, nullptr, &flag, &cpu) == L4_BAD_ARGUMENT, "another shape");
  CHECK(l4_merge_checked(&shifted, &late, nullptr, 0, nullptr, &flag, &cpu) == L4_BAD_ARGUMENT, "overlap");
  CHECK(std::strstr(l4_last_error(), "from overlaps w"), "%s", l4_last_error());
  CHECK(l4_merge_checked(w.get(), nullptr, nullptr, 0, nullptr, static_cast<int32_t*>(odd), &cpu) == L4_BAD_ARGUMENT, "alignment");
  Updates updates;
  updates.add(random, 1, 4, 3);
  auto* inside = reinterpret_cast<const float*>(w.get()->data) + 1;
  CHECK(l4_merge_checked(w.get(), nullptr, updates.list.data(), 1, inside, nullptr, &cpu) == L4_BAD_ARGUMENT, "overlap");
  CHECK(std::strstr(l4_last_error(), "row_factors overlaps w"), "%s", l4_last_error());
  const float factors[3] = {1, 1, 1};
  CHECK(l4_merge_checked(w.get(), nullptr, nullptr, 0, factors, nullptr, &cpu) == L4_BAD_ARGUMENT, "no update");
  l4_matrix bytes = *w.get();
  bytes.dtype = 4;
  CHECK(l4_merge(&bytes, nullptr, 0, &cpu) == L4_BAD_ARGUMENT, "type");
  Buffer small = random.matrix(1, 4, DType::f8, contiguous);
  updates.list[0].a = *small.get();
  CHECK(l4_merge(w.get(), updates.list.data(), 1, &cpu) == L4_BAD_ARGUMENT, "factors of bytes");
  CHECK(std::strstr(l4_last_error(), "updates[0].a has dtype 3"), "%s", l4_last_error());
}

}  // namespace

int main(int argc, char** argv) {
  use_instruction_set(argc, argv);
  copy_alone();
  random_shapes();
  large_shapes();
  nothing_to_do();
  special_values();
  checked();
  overflow_is_found();
  refused_checks();
  return 0;
}
