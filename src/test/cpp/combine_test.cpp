// combine: the bits of its definition, with the largest elements found by sorting; and the definition's parts against
// numbers from elsewhere.
#include <algorithm>
#include <numeric>

#include "check.h"
#include "core/combine.h"

namespace {

using namespace test;
using lora4j::Cut;
using lora4j::Election;
using lora4j::Pruning;
using lora4j::TaskTensor;

// Around a vector, a piece (256), a tile (2048), the size from which keys are counted (8192) and a range (65536).
struct Shape {
  int64_t rows;
  int64_t cols;
};
const std::vector<Shape> shapes = {{0, 3},  {1, 1},   {1, 7},    {3, 5},    {17, 15},   {16, 16},
                                   {1, 257}, {33, 62}, {32, 64}, {1, 2049}, {64, 128}, {91, 91}, {130, 1021}};

// The test vectors of Random123.
void philox_is_philox() {
  const uint64_t ones = ~uint64_t{0};
  struct Case {
    uint64_t seed, stream, block;
    uint32_t expected[4];
  };
  const Case cases[] = {
      {0, 0, 0, {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}},
      {ones, ones, ones, {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}},
      {0x299f31d0a4093822, 0x0370734413198a2e, 0x85a308d3243f6a88, {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}},
  };
  for (const Case& c : cases) {
    lora4j::PhiloxBlock got = lora4j::philox(c.seed, c.stream, c.block);
    for (int i = 0; i < 4; i++) CHECK(got.word[i] == c.expected[i], "word %d is %08x", i, got.word[i]);
  }
}

// The cut by sorting all elements.
Cut cut_of(const Matrix& x, int64_t kept) {
  int64_t n = x.rows * x.cols;
  if (kept == 0) return {lora4j::every_key, 0};
  std::vector<int64_t> order(static_cast<size_t>(n));
  std::iota(order.begin(), order.end(), 0);
  auto key = [&](int64_t i) { return lora4j::magnitude_key(x.at(i / x.cols, i % x.cols)); };
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return key(a) > key(b); });
  int64_t last = order[static_cast<size_t>(kept - 1)];
  return {key(last), last + 1};
}

// The cut as the CUDA kernels find it, step by step.
Cut cut_by_bins(const Matrix& x, int64_t kept, int64_t chunk) {
  int64_t n = x.rows * x.cols;
  auto key = [&](int64_t i) { return lora4j::magnitude_key(x.at(i / x.cols, i % x.cols)); };
  std::vector<uint32_t> high(lora4j::high_bins), low(lora4j::low_bins), equal(static_cast<size_t>((n + chunk - 1) / chunk));
  for (int64_t i = 0; i < n; i++) high[key(i) >> lora4j::low_bits]++;
  lora4j::Bin upper = lora4j::find_bin(high.data(), lora4j::high_bins, kept);
  for (int64_t i = 0; i < n; i++) {
    if (key(i) >> lora4j::low_bits == upper.bin) low[key(i) & (lora4j::low_bins - 1)]++;
  }
  lora4j::Bin lower = lora4j::find_bin(low.data(), lora4j::low_bins, upper.wanted);
  auto cut = static_cast<uint32_t>(upper.bin << lora4j::low_bits | lower.bin);
  if (lower.wanted == low[static_cast<size_t>(lower.bin)]) return {cut, n};
  for (int64_t i = 0; i < n; i++) equal[static_cast<size_t>(i / chunk)] += key(i) == cut;
  return {cut, lora4j::first_dropped(equal.data(), chunk, lower.wanted, [&](int64_t i) { return key(i) == cut; })};
}

void bins_find_the_cut(const Matrix& x, int64_t kept, unsigned seed) {
  int64_t n = x.rows * x.cols;
  if (kept == 0) return;
  Cut sorted = cut_of(x, kept);
  for (int64_t chunk : {7, 4096}) {
    Cut binned = cut_by_bins(x, kept, chunk);
    for (int64_t i = 0; i < n; i++) {
      float value = x.at(i / x.cols, i % x.cols);
      CHECK(sorted.keeps(value, i) == binned.keeps(value, i), "seed %u, element %ld, %ld kept", seed, i, kept);
    }
  }
}

// A combination with the memory it refers to.
struct Combination {
  Buffer y;
  std::vector<Buffer> buffers;
  std::vector<l4_task_tensor> list;
  std::vector<TaskTensor> views;
  Election election = Election::none;

  void add(Random& random, const Buffer& x, Pruning pruning) {
    buffers.push_back(x);
    l4_task_tensor tensor = {};
    int64_t n = x.matrix.rows * x.matrix.cols;
    tensor.weight = random.scale();
    tensor.pruning = static_cast<int64_t>(pruning);
    tensor.kept = random.below(4) == 0 ? random.below(2) * n : random.below(n + 1);
    tensor.density = random.below(6) == 0 ? static_cast<double>(random.below(2)) : static_cast<double>(random.below(1000)) / 1000;
    tensor.rescale = random.below(2);
    tensor.seed = static_cast<uint64_t>(random.below(1 << 30)) << 31 | 5;
    tensor.stream = static_cast<uint64_t>(random.below(9)) << 33;
    list.push_back(tensor);
  }

  // After the last add: buffers stay where they are.
  void finish() {
    for (size_t i = 0; i < list.size(); i++) {
      l4_task_tensor& tensor = list[i];
      tensor.x = *buffers[i].get();
      bool none = tensor.density * 0x1p32 < 1;
      views.push_back({buffers[i].view(), static_cast<float>(tensor.weight), static_cast<Pruning>(tensor.pruning),
                       tensor.kept, static_cast<uint64_t>(std::floor(tensor.density * 0x1p32)),
                       tensor.rescale && !none ? static_cast<float>(tensor.density) : 1.0f, tensor.seed, tensor.stream});
    }
  }

  int run(const l4_matrix* out) {
    return l4_combine(out, list.data(), static_cast<int64_t>(list.size()), static_cast<int64_t>(election), nullptr, 0,
                      &cpu);
  }

  std::vector<float> expected(DType type) const {
    std::vector<Cut> cuts;
    for (const TaskTensor& tensor : views) {
      cuts.push_back(tensor.pruning == Pruning::largest ? cut_of(tensor.x, tensor.kept) : Cut{0, 0});
    }
    std::vector<float> bits;
    const Matrix& first = views[0].x;
    for (int64_t i = 0; i < first.rows * first.cols; i++) {
      std::vector<float> pruned;
      for (size_t t = 0; t < views.size(); t++) {
        float value = views[t].x.at(i / first.cols, i % first.cols);
        pruned.push_back(lora4j::pruned_element(views[t], cuts[t], value, i));
      }
      float value = lora4j::combined_element(views.data(), static_cast<int64_t>(views.size()), election,
                                             [&](int64_t t) { return pruned[static_cast<size_t>(t)]; });
      unsigned char memory[4];
      lora4j::store(memory, 0, type, value);
      bits.push_back(lora4j::load(memory, 0, type));
    }
    return bits;
  }
};

void same(const std::vector<float>& got, const std::vector<float>& expected, unsigned seed) {
  CHECK(got.size() == expected.size(), "seed %u", seed);
  for (size_t i = 0; i < got.size(); i++) {
    CHECK(lora4j::bits_of(got[i]) == lora4j::bits_of(expected[i]), "seed %u, element %zu: %g, defined as %g", seed, i,
          got[i], expected[i]);
  }
}

// Values of few magnitudes, or of both signs of zero, or NaN and infinity among others.
void roughen(Random& random, Buffer& x) {
  int64_t kind = random.below(6);
  Matrix m = x.view();
  for (int64_t i = 0; i < m.rows * m.cols; i++) {
    float value = m.at(i / m.cols, i % m.cols);
    if (kind == 0) value = value < 0 ? -0.75f : 0.75f;
    if (kind == 1) value = std::round(value);
    if (kind == 2) value = random.below(3) ? (value < 0 ? -0.0f : 0.0f) : value;
    if (kind == 3 && i % 97 == 5) value = i % 2 ? NAN : -INFINITY;
    if (kind == 4) value *= 0x1p-130f;
    m.set(i / m.cols, i % m.cols, value);
  }
}

void random_combinations() {
  for (unsigned seed = 0; seed < 250; seed++) {
    Random random(seed);
    Shape shape = shapes[seed % shapes.size()];
    Combination c;
    c.y = random.matrix(shape.rows, shape.cols);
    for (int64_t t = random.below(4); t >= 0; t--) {
      Buffer x = random.matrix(shape.rows, shape.cols);
      roughen(random, x);
      c.add(random, x, static_cast<Pruning>(random.below(3)));
    }
    c.election = static_cast<Election>(random.below(3));
    c.finish();
    bins_find_the_cut(c.views[0].x, c.views[0].kept, seed);
    std::vector<float> expected = c.expected(c.y.view().type);
    CHECK(c.run(c.y.get()) == L4_OK, "seed %u", seed);
    same(values(c.y), expected, seed);
    // Into the first tensor itself.
    expected = c.expected(c.views[0].x.type);
    CHECK(c.run(c.buffers[0].get()) == L4_OK, "seed %u, in place", seed);
    same(values(c.buffers[0]), expected, seed);
  }
}

// Exactly as many elements are kept as asked for, also among equal ones; how many random pruning keeps is near density.
void as_many_as_asked() {
  Random random(900);
  for (int64_t kept : {0, 1, 999, 20000, 39999, 40000}) {
    Combination c;
    c.y = random.matrix(200, 200, DType::f32, contiguous);
    Buffer x = random.matrix(200, 200, DType::bf16, contiguous);
    Matrix m = x.view();
    for (int64_t i = 0; i < 40000; i++) m.set(i / 200, i % 200, i % 3 ? -2.0f : 2.0f);
    c.add(random, x, Pruning::largest);
    c.list[0].kept = kept;
    c.finish();
    CHECK(c.run(c.y.get()) == L4_OK, "kept %ld", kept);
    std::vector<float> got = values(c.y);
    for (int64_t i = 0; i < 40000; i++) CHECK((got[static_cast<size_t>(i)] != 0) == (i < kept), "kept %ld, %ld", kept, i);
  }
  for (double density : {0.1, 0.5, 0.93}) {
    Combination c;
    c.y = random.matrix(500, 400, DType::f32, contiguous);
    c.add(random, random.matrix(500, 400, DType::f32, contiguous), Pruning::random);
    c.list[0].density = density;
    c.finish();
    CHECK(c.run(c.y.get()) == L4_OK, "density %g", density);
    std::vector<float> got = values(c.y);
    auto kept = static_cast<double>(std::count_if(got.begin(), got.end(), [](float v) { return v != 0; }));
    double deviation = std::sqrt(200000 * density * (1 - density));
    CHECK(std::abs(kept - 200000 * density) < 5 * deviation, "density %g keeps %g of 200000", density, kept);
  }
}

void threads_do_not_matter() {
  Random random(950);
  Combination c;
  c.y = random.matrix(700, 401, DType::bf16, contiguous);
  for (Pruning pruning : {Pruning::largest, Pruning::random, Pruning::largest}) {
    c.add(random, random.matrix(700, 401, DType::bf16, contiguous), pruning);
  }
  c.list[0].kept = 50000;
  c.list[2].kept = 150000;
  c.election = Election::total;
  c.finish();
  std::vector<unsigned char> first;
  for (int threads : {1, 2, 5}) {
    CHECK(l4_set_threads(threads) == L4_OK, "threads");
    CHECK(c.run(c.y.get()) == L4_OK, "threads");
    CHECK(first.empty() || first == c.y.bytes, "%d threads give other bits", threads);
    first = c.y.bytes;
  }
  l4_set_threads(0);
}

void refuses(const char* named, const std::function<void(Combination&, l4_matrix&)>& spoil) {
  Random random(960);
  Combination c;
  c.y = random.matrix(3, 5, DType::f32, contiguous);
  c.add(random, random.matrix(3, 5, DType::f32, contiguous), Pruning::random);
  c.add(random, random.matrix(3, 5, DType::f16, transposed), Pruning::largest);
  c.finish();
  l4_matrix y = *c.y.get();
  spoil(c, y);
  std::vector<unsigned char> before = c.y.bytes;
  int code = c.run(&y);
  CHECK(code == L4_BAD_ARGUMENT, "%s: code %d", named, code);
  std::string text = l4_last_error();
  CHECK(text.find(std::string("l4_combine: ") + named) == 0, "%s", text.c_str());
  CHECK(c.y.bytes == before, "%s: memory changed", named);
}

void bad_arguments() {
  using C = Combination;
  refuses("y has negative size", [](C&, l4_matrix& y) { y.rows = -1; });
  refuses("y has elements that share memory", [](C&, l4_matrix& y) { y.row_stride = 0; });
  refuses("y has dtype 9", [](C&, l4_matrix& y) { y.dtype = 9; });
  refuses("y has a null data pointer", [](C&, l4_matrix& y) { y.data = nullptr; });
  refuses("tensors[1].x is (5, 3)", [](C& c, l4_matrix&) { std::swap(c.list[1].x.rows, c.list[1].x.cols); });
  refuses("tensors[0].x has a null data pointer", [](C& c, l4_matrix&) { c.list[0].x.data = nullptr; });
  refuses("tensors[0].x overlaps y", [](C& c, l4_matrix& y) { c.list[0].x = {y.data, 3, 5, 4, 1, L4_F32}; });
  refuses("tensors[0].x overlaps y", [](C& c, l4_matrix& y) { c.list[0].x = {y.data, 3, 5, 5, 1, L4_F16}; });
  refuses("tensors[0].weight", [](C& c, l4_matrix&) { c.list[0].weight = NAN; });
  refuses("tensors[0].weight", [](C& c, l4_matrix&) { c.list[0].weight = 1e39; });
  refuses("tensors[1].pruning is 3", [](C& c, l4_matrix&) { c.list[1].pruning = 3; });
  refuses("tensors[1].kept is 16", [](C& c, l4_matrix&) { c.list[1].kept = 16; });
  refuses("tensors[1].kept is -1", [](C& c, l4_matrix&) { c.list[1].kept = -1; });
  refuses("tensors[0].density", [](C& c, l4_matrix&) { c.list[0].density = NAN; });
  refuses("tensors[0].density", [](C& c, l4_matrix&) { c.list[0].density = 1.25; });
  refuses("tensors[0].density", [](C& c, l4_matrix&) { c.list[0].density = -1e-9; });
  refuses("tensors[0].rescale is 2", [](C& c, l4_matrix&) { c.list[0].rescale = 2; });
  refuses("election is -1", [](C& c, l4_matrix&) { c.election = static_cast<Election>(-1); });
  refuses("count is 0", [](C& c, l4_matrix&) { c.list.clear(); });
  CHECK(l4_combine(nullptr, nullptr, 1, 0, nullptr, 0, &cpu) == L4_BAD_ARGUMENT, "y");
  Buffer y = Random(1).matrix(2, 2, DType::f32, contiguous);
  CHECK(l4_combine(y.get(), nullptr, 1, 0, nullptr, 0, &cpu) == L4_BAD_ARGUMENT, "tensors");
  CHECK(std::strstr(l4_last_error(), "tensors is null"), "%s", l4_last_error());
  CHECK(l4_combine(y.get(), nullptr, 1, 0, nullptr, 0, nullptr) == L4_BAD_ARGUMENT, "place");
  CHECK(l4_combine_scratch(-1, 2, &cpu) < 0 && l4_combine_scratch(1, 2, nullptr) < 0, "scratch");
  CHECK(l4_combine_scratch(4096, 4096, &cpu) == 0, "scratch");
}

}  // namespace

int main(int argc, char** argv) {
  use_instruction_set(argc, argv);
  philox_is_philox();
  random_combinations();
  as_many_as_asked();
  threads_do_not_matter();
  bad_arguments();
  return 0;
}
