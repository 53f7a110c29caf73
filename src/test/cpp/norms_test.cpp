// gram and row_norms: the bits of their definitions, which are within rounding of sums in long double.
#include "check.h"
#include "core/norms.h"

namespace {

using namespace test;

// Lanes: 8; tiles: up to 4 x 4; blocks: 16 rows.
const std::vector<int64_t> counts = {0, 1, 2, 3, 4, 5, 15, 16, 17, 33};
const std::vector<int64_t> widths = {0, 1, 7, 8, 9, 16, 31, 65, 300};
const std::vector<int64_t> ranks = {1, 2, 3, 4, 5, 8, 17};

bool same_bits(double a, double b) { return std::memcmp(&a, &b, sizeof a) == 0; }

void grams() {
  for (unsigned seed = 0; seed < 80; seed++) {
    Random random(seed);
    int64_t width = random.pick(widths);
    Buffer x = random.matrix(random.pick(counts), width);
    Buffer y = random.below(4) ? random.matrix(random.pick(counts), width) : x;
    Matrix left = x.view(), right = y.view();
    std::vector<double> g(static_cast<size_t>(left.rows * right.rows), -1);
    CHECK(l4_gram(g.data(), x.get(), y.get(), &cpu) == L4_OK, "seed %u", seed);
    for (int64_t i = 0; i < left.rows; i++) {
      for (int64_t j = 0; j < right.rows; j++) {
        long double exact = 0, magnitude = 0;
        for (int64_t k = 0; k < width; k++) {
          long double term = static_cast<long double>(left.at(i, k)) * static_cast<long double>(right.at(j, k));
          exact += term;
          magnitude += std::abs(term);
        }
        double got = g[static_cast<size_t>(i * right.rows + j)];
        CHECK(same_bits(got, lora4j::double_dot(left, i, right, j)), "seed %u (%ld, %ld)", seed, i, j);
        CHECK(std::abs(static_cast<long double>(got) - exact) <= magnitude * static_cast<long double>(width) * 0x1p-52L,
              "seed %u (%ld, %ld): %g, expected %Lg", seed, i, j, got, exact);
      }
    }
  }
}

float defined_norm(const Matrix& w, const lora4j::LowRank& update, int64_t row) {
  int64_t rank = update.rank();
  std::vector<double> products, inner;
  for (int64_t k = 0; k < rank; k++) products.push_back(lora4j::double_dot(w, row, update.a, k));
  for (int64_t l = 0; l < rank; l++) {
    std::vector<double> column;
    for (int64_t k = 0; k < rank; k++) column.push_back(lora4j::double_dot(update.a, k, update.a, l));
    inner.push_back(lora4j::factor_sum(update.b, row, column.data(), 1));
  }
  return lora4j::norm_of(lora4j::double_dot(w, row, w, row), lora4j::factor_sum(update.b, row, products.data(), 1),
                         lora4j::factor_sum(update.b, row, inner.data(), 1), update.scale);
}

double exact_norm(const Matrix& w, const lora4j::LowRank& update, int64_t row) {
  double sum = 0;
  for (int64_t i = 0; i < w.cols; i++) {
    double value = w.at(row, i);
    for (int64_t k = 0; k < update.rank(); k++) {
      value += static_cast<double>(update.scale) * update.b.at(row, k) * update.a.at(k, i);
    }
    sum += value * value;
  }
  return std::sqrt(sum);
}

void check_norms(Buffer& w, Updates& updates, Buffer& norms, double tolerance, unsigned seed) {
  CHECK(l4_row_norms(norms.get(), w.get(), updates.list.data(), nullptr, 0, &cpu) == L4_OK, "seed %u", seed);
  Matrix out = norms.view();
  for (int64_t row = 0; row < out.rows; row++) {
    unsigned char memory[4];
    lora4j::store(memory, 0, out.type, defined_norm(w.view(), updates.views[0], row));
    float defined = lora4j::load(memory, 0, out.type);
    CHECK(lora4j::bits_of(out.at(row, 0)) == lora4j::bits_of(defined), "seed %u, row %ld: %g, defined as %g", seed, row,
          out.at(row, 0), defined);
    double exact = exact_norm(w.view(), updates.views[0], row);
    double allowed = exact * (half_ulp(out.type) + unit + 1e-12) + tolerance + smallest(out.type);
    CHECK(std::abs(out.at(row, 0) - exact) <= allowed, "seed %u, row %ld: %g, expected %g", seed, row, out.at(row, 0),
          exact);
  }
}

void row_norms() {
  for (unsigned seed = 0; seed < 100; seed++) {
    Random random(seed);
    int64_t out = random.pick(counts);
    int64_t in = random.pick(widths);
    Buffer w = random.matrix(out, in);
    Updates updates;
    updates.add(random, random.pick(ranks), in, out);
    Buffer norms = random.matrix(out, 1);
    check_norms(w, updates, norms, 0, seed);
  }
}

// w = -scale b a: the norm is nearly 0, and rounding must not make it NaN.
void what_cancels() {
  Random random(900);
  Updates updates;
  updates.add(random, 2, 40, 9);
  Buffer w = random.matrix(9, 40, DType::f32, contiguous);
  for (int64_t o = 0; o < 9; o++) {
    for (int64_t i = 0; i < 40; i++) {
      double value = 0;
      for (int64_t k = 0; k < 2; k++) value -= static_cast<double>(updates.views[0].b.at(o, k)) * updates.views[0].a.at(k, i);
      w.view().set(o, i, static_cast<float>(value * updates.views[0].scale));
    }
  }
  Buffer norms = random.matrix(9, 1, DType::f32, contiguous);
  check_norms(w, updates, norms, 1e-6, 900);
}

struct Arguments {
  Random random{1};
  Buffer w = random.matrix(3, 5, DType::f32, contiguous);
  Buffer norms = random.matrix(3, 1, DType::f32, contiguous);
  Updates updates;
  const l4_low_rank* update;
  std::vector<double> g = std::vector<double>(9, 7);

  Arguments() {
    updates.add(random, 2, 5, 3);
    update = updates.list.data();
    w.get();
    norms.get();
  }
};

void refuses(const char* named, const std::function<int(Arguments&)>& call) {
  Arguments a;
  std::vector<unsigned char> norms = a.norms.bytes;
  CHECK(call(a) == L4_BAD_ARGUMENT, "%s", named);
  std::string text = l4_last_error();
  CHECK(text.find(named) != std::string::npos, "%s", text.c_str());
  CHECK(a.norms.bytes == norms && a.g == std::vector<double>(9, 7), "%s: memory changed", named);
}

int norms_of(Arguments& a) { return l4_row_norms(&a.norms.matrix, &a.w.matrix, a.update, nullptr, 0, &cpu); }

void bad_arguments() {
  using A = Arguments;
  Arguments good;
  CHECK(norms_of(good) == L4_OK, "the arguments are right before they are spoilt");
  refuses("l4_row_norms: norms is (3, 2)", [](A& a) { a.norms.matrix.cols = a.norms.matrix.row_stride = 2; return norms_of(a); });
  refuses("l4_row_norms: norms is (2, 1)", [](A& a) { a.norms.matrix.rows = 2; return norms_of(a); });
  refuses("l4_row_norms: w has dtype -2", [](A& a) { a.w.matrix.dtype = -2; return norms_of(a); });
  refuses("l4_row_norms: w overlaps norms", [](A& a) {
    a.w.matrix.data = a.norms.matrix.data;
    return norms_of(a);
  });
  refuses("l4_row_norms: update is null", [](A& a) { a.update = nullptr; return norms_of(a); });
  refuses("l4_row_norms: update[0].scale", [](A& a) { a.updates.list[0].scale = NAN; return norms_of(a); });
  refuses("l4_row_norms: update[0] has a", [](A& a) { a.updates.list[0].a.rows = 1; return norms_of(a); });
  refuses("l4_gram: g is null", [](A& a) { return l4_gram(nullptr, &a.w.matrix, &a.w.matrix, &cpu); });
  refuses("l4_gram: g is not aligned", [](A& a) {
    return l4_gram(reinterpret_cast<double*>(reinterpret_cast<char*>(a.g.data()) + 4), &a.w.matrix, &a.w.matrix, &cpu);
  });
  refuses("l4_gram: y is (3, 1)", [](A& a) { return l4_gram(a.g.data(), &a.w.matrix, &a.norms.matrix, &cpu); });
  refuses("l4_gram: x overlaps g", [](A& a) {
    l4_matrix x = {a.g.data(), 3, 5, 5, 1, L4_F32};
    return l4_gram(a.g.data(), &x, &a.w.matrix, &cpu);
  });
  refuses("l4_gram: x is null", [](A& a) { return l4_gram(a.g.data(), nullptr, &a.w.matrix, &cpu); });
  CHECK(l4_row_norms_scratch(16, &cpu) == 0 && l4_row_norms_scratch(0, &cpu) < 0, "scratch");
}

}  // namespace

int main(int argc, char** argv) {
  use_instruction_set(argc, argv);
  grams();
  row_norms();
  what_cancels();
  bad_arguments();
  return 0;
}
