// low_rank_backward: the bits of its definition, which is within rounding of the double result; memory it must not touch.
#include "check.h"
#include "core/low_rank_backward.h"

namespace {

using namespace test;

// Lanes: 16; tiles: 6 rows, 8, 16 or 64 columns; units: 8 ranks, 96 rows, 128 columns; chunks: 256 rows.
const std::vector<int64_t> batches = {0, 1, 2, 5, 6, 7, 13, 40, 97, 257, 530};
const std::vector<int64_t> widths = {1, 7, 8, 9, 15, 17, 33, 64, 65, 130};
const std::vector<int64_t> ranks = {1, 2, 3, 5, 6, 7, 9, 17};

float product(const Matrix& factor, int64_t k, const Matrix& input, int64_t t) {
  float lane[lora4j::definition_lanes];
  for (int l = 0; l < lora4j::definition_lanes; l++) lane[l] = lora4j::lane_sum(factor, k, input, t, l);
  for (int half = lora4j::definition_lanes / 2; half > 0; half /= 2) {
    for (int l = 0; l < half; l++) lane[l] += lane[l + half];
  }
  return lane[0];
}

float rounded(float value, DType type) {
  unsigned char memory[4];
  lora4j::store(memory, 0, type, value);
  return lora4j::load(memory, 0, type);
}

// A number with the total magnitude of the terms it is the sum of.
struct Exact {
  double value = 0;
  double magnitude = 0;
  void add(double term) {
    value += term;
    magnitude += std::abs(term);
  }
};

struct Call {
  Buffer dx, dy, x, h;
  Updates adapters;
  std::vector<Buffer> gradients;  // a, b of each adapter; without rows if not wanted
  std::vector<int32_t> rows;
  bool has_dx = true;
  bool has_h = false;

  Call(Random& random, int64_t count, int64_t in, int64_t out, int64_t adapter_count) {
    dx = random.matrix(count, in);
    dy = random.matrix(count, out);
    x = random.matrix(count, in);
    for (int64_t a = 0; a < adapter_count; a++) {
      int64_t rank = random.pick(ranks);
      adapters.add(random, rank, in, out);
      bool none = random.below(5) == 0;
      gradients.push_back(none ? Buffer{} : random.matrix(rank, in));
      gradients.push_back(random.below(5) == 0 ? Buffer{} : random.matrix(out, rank));
    }
    for (int64_t t = 0; t < count; t++) {
      rows.push_back(static_cast<int32_t>(random.below(adapter_count + 1) - 1));
      if (adapter_count == 1 && random.below(20)) rows.back() = 0;
    }
    has_dx = random.below(5) != 0;
  }

  // The products with A as the forward pass would keep them.
  void keep_h() {
    int64_t most = 1;
    for (const lora4j::LowRank& adapter : adapters.views) most = std::max(most, adapter.rank());
    Random random(5);
    h = random.matrix(x.matrix.rows, most + 1, DType::f32, rows_apart);
    for (int64_t t = 0; t < x.matrix.rows; t++) {
      if (rows[static_cast<size_t>(t)] < 0) continue;
      const lora4j::LowRank& adapter = adapters.views[static_cast<size_t>(rows[static_cast<size_t>(t)])];
      for (int64_t k = 0; k < adapter.rank(); k++) h.view().set(t, k, product(adapter.a, k, x.view(), t));
    }
    has_h = true;
  }

  std::vector<l4_low_rank_gradient> gradient_list() {
    std::vector<l4_low_rank_gradient> list;
    for (size_t a = 0; a < adapters.list.size(); a++) {
      l4_low_rank_gradient gradient = {};
      if (gradients[2 * a].matrix.rows > 0) gradient.a = *gradients[2 * a].get();
      if (gradients[2 * a + 1].matrix.rows > 0) gradient.b = *gradients[2 * a + 1].get();
      list.push_back(gradient);
    }
    return list;
  }

  int run() {
    std::vector<l4_low_rank_gradient> list = gradient_list();
    return l4_low_rank_backward(has_dx ? dx.get() : nullptr, dy.get(), x.get(), has_h ? h.get() : nullptr, rows.data(),
                                adapters.list.data(), list.data(), adapters.count(), nullptr, 0, &cpu);
  }
};

void near(float got, const Exact& exact, int64_t terms, DType type, unsigned seed, const char* what) {
  double allowed = bound(static_cast<double>(terms), exact.magnitude, exact.value, type);
  CHECK(std::abs(got - exact.value) <= allowed, "seed %u, %s: %g, expected %g", seed, what, got, exact.value);
}

// The expected rows of dx; all of it is u, A and the start.
std::vector<float> expected_dx(Call& call, unsigned seed) {
  std::vector<float> bits;
  Matrix dx = call.dx.view(), dy = call.dy.view();
  for (int64_t t = 0; t < dx.rows; t++) {
    int32_t index = call.rows[static_cast<size_t>(t)];
    const lora4j::LowRank* adapter = index < 0 ? nullptr : &call.adapters.views[static_cast<size_t>(index)];
    std::vector<float> u;
    for (int64_t k = 0; adapter && k < adapter->rank(); k++) u.push_back(product(adapter->b.transposed(), k, dy, t));
    for (int64_t i = 0; i < dx.cols; i++) {
      if (!adapter) {
        bits.push_back(dx.at(t, i));
        continue;
      }
      Exact exact;
      exact.add(dx.at(t, i));
      for (int64_t k = 0; k < adapter->rank(); k++) {
        double a = static_cast<double>(adapter->scale) * adapter->a.at(k, i);
        for (int64_t o = 0; o < dy.cols; o++) exact.add(a * adapter->b.at(o, k) * dy.at(t, o));
      }
      lora4j::LowRank turned = {adapter->a, adapter->a.transposed(), adapter->scale};
      float value = rounded(lora4j::updated_element(dx.at(t, i), turned, u.data(), i), dx.type);
      near(value, exact, dy.cols + adapter->rank() + 20, dx.type, seed, "dx");
      bits.push_back(value);
    }
  }
  return bits;
}

// The expected gradient (rank, width) of a factor: input (T, width) weighted by products of `factor` with `other`.
std::vector<float> expected_gradient(Call& call, int32_t index, const Matrix& gradient, const Matrix& input,
                                     const Matrix& factor, const Matrix& other, unsigned seed) {
  std::vector<int32_t> own;
  for (size_t t = 0; t < call.rows.size(); t++) {
    if (call.rows[t] == index) own.push_back(static_cast<int32_t>(t));
  }
  int64_t rank = gradient.rows;
  std::vector<float> left;
  for (int32_t t : own) {
    for (int64_t k = 0; k < rank; k++) left.push_back(product(factor, k, other, t));
  }
  float scale = call.adapters.views[static_cast<size_t>(index)].scale;
  auto n = static_cast<int64_t>(own.size());
  std::vector<float> bits;
  for (int64_t k = 0; k < rank; k++) {
    for (int64_t j = 0; j < gradient.cols; j++) {
      float value = gradient.at(k, j);
      Exact exact;
      exact.add(value);
      for (int32_t t : own) {
        double right = static_cast<double>(scale) * input.at(t, j);
        for (int64_t i = 0; i < other.cols; i++) exact.add(right * factor.at(k, i) * other.at(t, i));
      }
      value = lora4j::gradient_element(value, scale, left.data() + k, rank, input, own.data(), n, j);
      value = rounded(value, gradient.type);
      near(value, exact, n + other.cols + 20, gradient.type, seed, "gradient");
      bits.push_back(value);
    }
  }
  return bits;
}

void same(const std::vector<float>& got, const std::vector<float>& expected, unsigned seed, const char* what) {
  CHECK(got.size() == expected.size(), "seed %u, %s", seed, what);
  for (size_t i = 0; i < got.size(); i++) {
    CHECK(lora4j::bits_of(got[i]) == lora4j::bits_of(expected[i]), "seed %u, %s, element %zu: %g, defined as %g", seed,
          what, i, got[i], expected[i]);
  }
}

std::vector<float> rows_in_order(const Matrix& m) {
  std::vector<float> out;
  for (int64_t i = 0; i < m.rows * m.cols; i++) out.push_back(m.at(i / m.cols, i % m.cols));
  return out;
}

void check_call(Call& call, unsigned seed) {
  std::vector<float> start = values(call.dx);
  std::vector<float> dx = expected_dx(call, seed);
  std::vector<std::vector<float>> factors;
  auto count = static_cast<int32_t>(call.adapters.count());
  for (int32_t a = 0; a < count; a++) {
    const lora4j::LowRank& adapter = call.adapters.views[static_cast<size_t>(a)];
    Matrix da = call.gradients[2 * static_cast<size_t>(a)].view();
    Matrix db = call.gradients[2 * static_cast<size_t>(a) + 1].view().transposed();
    factors.push_back(expected_gradient(call, a, da, call.x.view(), adapter.b.transposed(), call.dy.view(), seed));
    factors.push_back(expected_gradient(call, a, db, call.dy.view(), adapter.a, call.x.view(), seed));
  }
  CHECK(call.run() == L4_OK, "seed %u", seed);
  same(values(call.dx), call.has_dx ? dx : start, seed, "dx");
  for (size_t i = 0; i < factors.size(); i++) {
    Matrix view = call.gradients[i].view();
    same(rows_in_order(i % 2 ? view.transposed() : view), factors[i], seed, i % 2 ? "db" : "da");
  }
}

void random_calls() {
  for (unsigned seed = 0; seed < 80; seed++) {
    Random random(seed);
    Call call(random, random.pick(batches), random.pick(widths), random.pick(widths), random.below(4));
    if (random.below(2)) call.keep_h();
    check_call(call, seed);
  }
}

void threads_do_not_matter() {
  std::vector<unsigned char> first[4];
  for (int threads : {1, 2, 5}) {
    Random random(950);
    Call call(random, 700, 300, 520, 2);
    for (size_t i = 0; i < 4; i++) {
      const lora4j::LowRank& adapter = call.adapters.views[i / 2];
      call.gradients[i] = random.matrix(i % 2 ? 520 : adapter.rank(), i % 2 ? adapter.rank() : 300, DType::bf16, contiguous);
    }
    CHECK(l4_set_threads(threads) == L4_OK && call.run() == L4_OK, "%d threads", threads);
    for (size_t i = 0; i < 4; i++) {
      CHECK(first[i].empty() || first[i] == call.gradients[i].bytes, "%d threads give other bits", threads);
      first[i] = call.gradients[i].bytes;
    }
  }
  l4_set_threads(0);
}

// What a refused call is given; spoilt one thing at a time.
struct Arguments {
  Random random{1};
  Buffer dx = random.matrix(3, 5, DType::f32, contiguous);
  Buffer dy = random.matrix(3, 4, DType::f32, contiguous);
  Buffer x = random.matrix(3, 5, DType::f32, contiguous);
  Buffer h = random.matrix(3, 2, DType::f32, contiguous);
  Buffer da = random.matrix(2, 5, DType::f32, contiguous);
  Buffer db = random.matrix(4, 2, DType::f32, contiguous);
  Updates adapters;
  std::vector<int32_t> rows = {0, -1, 0};
  l4_low_rank_gradient gradient;
  const l4_low_rank_gradient* gradients = &gradient;
  const l4_matrix* x_at;
  int64_t count = 1;

  Arguments() {
    adapters.add(random, 2, 5, 4);
    gradient = {*da.get(), *db.get()};
    x_at = x.get();
    dx.get();
    dy.get();
    h.get();
  }
  int run() {
    return l4_low_rank_backward(&dx.matrix, &dy.matrix, x_at, &h.matrix, rows.data(), adapters.list.data(), gradients,
                                count, nullptr, 0, &cpu);
  }
};

void refuses(const char* named, const std::function<void(Arguments&)>& spoil) {
  Arguments a;
  spoil(a);
  std::vector<unsigned char> dx = a.dx.bytes, da = a.da.bytes, db = a.db.bytes;
  CHECK(a.run() == L4_BAD_ARGUMENT, "%s", named);
  std::string text = l4_last_error();
  CHECK(text.find(std::string("l4_low_rank_backward: ") + named) == 0, "%s", text.c_str());
  CHECK(a.dx.bytes == dx && a.da.bytes == da && a.db.bytes == db, "%s: memory changed", named);
}

void bad_arguments() {
  using A = Arguments;
  CHECK(Arguments().run() == L4_OK, "the arguments are right before they are spoilt");
  refuses("x is null", [](A& a) { a.x_at = nullptr; });
  refuses("x is (2, 5)", [](A& a) { a.x.matrix.rows = 2; });
  refuses("dy has negative size", [](A& a) { a.dy.matrix.cols = -4; });
  refuses("dx is (2, 5)", [](A& a) { a.dx.matrix.rows = 2; });
  refuses("dx is (3, 4)", [](A& a) { a.dx.matrix.cols = 4; });
  refuses("dx has elements that share memory", [](A& a) { a.dx.matrix.row_stride = 1; });
  refuses("dy overlaps dx", [](A& a) { a.dy.matrix.data = a.dx.matrix.data; });
  refuses("x overlaps dx", [](A& a) { a.x.matrix.data = a.dx.matrix.data; });
  refuses("h is (3, 1)", [](A& a) { a.h.matrix.cols = 1; });
  refuses("h overlaps dx", [](A& a) { a.h.matrix = {a.dx.matrix.data, 3, 2, 5, 1, L4_F32}; });
  refuses("adapters[0] has a", [](A& a) { a.adapters.list[0].a.cols = 4; });
  refuses("adapters[0].scale", [](A& a) { a.adapters.list[0].scale = INFINITY; });
  refuses("adapters[0].a overlaps dx", [](A& a) { a.adapters.list[0].a = {a.dx.matrix.data, 2, 5, 5, 1, L4_F32}; });
  refuses("rows[2] is 1", [](A& a) { a.rows[2] = 1; });
  refuses("rows[0] is -2", [](A& a) { a.rows[0] = -2; });
  refuses("count is -1", [](A& a) { a.count = -1; });
  refuses("gradients is null", [](A& a) { a.gradients = nullptr; });
  refuses("gradients[0].a is (5, 2)", [](A& a) { std::swap(a.gradient.a.rows, a.gradient.a.cols); });
  refuses("gradients[0].b has a null data pointer", [](A& a) { a.gradient.b.data = nullptr; });
  refuses("gradients[0].b has dtype 3", [](A& a) { a.gradient.b.dtype = 3; });
  refuses("gradients[0].a has elements that share memory", [](A& a) { a.gradient.a.row_stride = 0; });
  refuses("gradients[0].a overlaps x", [](A& a) { a.gradient.a.data = a.x.matrix.data; });
  refuses("gradients[0].b overlaps dy", [](A& a) { a.gradient.b.data = a.dy.matrix.data; });
  refuses("gradients[0].b overlaps adapters[0].b", [](A& a) {
    a.adapters.list[0].b = {a.db.matrix.data, 4, 2, 2, 1, L4_F16};
  });
  refuses("gradients[0].a overlaps dx", [](A& a) { a.gradient.a.data = a.dx.matrix.data; });
  refuses("gradients[0].b overlaps gradients[0].a", [](A& a) {
    a.gradient.b.data = static_cast<float*>(a.gradient.a.data) + 2;
  });
  CHECK(l4_low_rank_backward_scratch(4096, 4096, 16, &cpu) == 0, "scratch");
  CHECK(l4_low_rank_backward_scratch(-1, 4096, 16, &cpu) < 0, "scratch");
  CHECK(l4_low_rank_backward_scratch(INT64_MAX, INT64_MAX, INT64_MAX, &cpu) < 0, "scratch");
}

}  // namespace

int main(int argc, char** argv) {
  use_instruction_set(argc, argv);
  random_calls();
  threads_do_not_matter();
  bad_arguments();
  return 0;
}
