// dequantize: the bits of its definition, for any range of rows, both ways of storing scales and both widths.
#include "check.h"
#include "core/quantized.h"

namespace {

using namespace test;

// A quantized weight in exactly as much memory as it needs.
struct Weight {
  std::vector<uint8_t> packed, codes;
  std::vector<float> values = std::vector<float>(16), scales, map;
  l4_quantized q{};

  Weight(Random& random, int64_t bits, int64_t rows, int64_t cols, int64_t block, bool nested) {
    int64_t elements = rows * cols;
    fill(packed, bits == 4 ? (elements + 1) / 2 : elements, random);
    for (float& value : values) value = number(random);
    int64_t blocks = (elements + block - 1) / block;
    int64_t scale_block = 5;
    if (nested) fill(codes, blocks, random);
    if (nested) map.resize(256);
    scales.resize(static_cast<size_t>(bits == 8 ? rows : nested ? (blocks + scale_block - 1) / scale_block : blocks));
    for (float& value : map) value = number(random);
    for (float& value : scales) value = number(random);
    q = {packed.data(), bits, rows,       cols,        values.data(),           block,
         scales.data(), nested ? codes.data() : nullptr, map.data(), scale_block, 0.0123, 0};
  }

  static void fill(std::vector<uint8_t>& bytes, int64_t count, Random& random) {
    for (int64_t i = 0; i < count; i++) bytes.push_back(static_cast<uint8_t>(random.below(256)));
  }
  static float number(Random& random) { return static_cast<float>(random.below(2001) - 1000) / 777; }

  float expected(int64_t row, int64_t col) const {
    int64_t e = row * q.cols + col;
    if (q.bits == 8) {
      float product = static_cast<float>(static_cast<int8_t>(packed[static_cast<size_t>(e)])) * scales[static_cast<size_t>(row)];
      return product * 7.874015718698502e-3f;
    }
    int code = e % 2 ? packed[static_cast<size_t>(e / 2)] % 16 : packed[static_cast<size_t>(e / 2)] / 16;
    auto block = static_cast<size_t>(e / q.block_size);
    float scale = q.scale_codes ? map[codes[block]] * scales[block / 5] : scales[block];
    if (q.scale_codes) scale = scale + 0.0123f;
    return values[static_cast<size_t>(code)] * scale;
  }
};

void random_weights() {
  const std::vector<int64_t> rows = {0, 1, 2, 3, 17, 40}, cols = {0, 1, 3, 8, 63, 64, 65, 700, 2100}, blocks = {1, 3, 32, 64, 256};
  for (unsigned seed = 0; seed < 120; seed++) {
    Random random(seed);
    int64_t height = random.pick(rows);
    Weight weight(random, random.below(2) ? 4 : 8, height, random.pick(cols), random.pick(blocks), random.below(2));
    int64_t first = random.below(height + 1);
    Buffer w = random.matrix(random.below(height - first + 1), weight.q.cols);
    CHECK(l4_dequantize(w.get(), &weight.q, first, &cpu) == L4_OK, "seed %u", seed);
    Matrix out = w.view();
    for (int64_t i = 0; i < out.rows; i++) {
      for (int64_t j = 0; j < out.cols; j++) {
        unsigned char memory[4];
        lora4j::store(memory, 0, out.type, weight.expected(first + i, j));
        float expected = lora4j::load(memory, 0, out.type);
        CHECK(lora4j::bits_of(out.at(i, j)) == lora4j::bits_of(expected), "seed %u (%ld, %ld): %g, expected %g", seed, i, j,
              out.at(i, j), expected);
      }
    }
  }
}

// The function CUDA threads run gives the same numbers.
void elements_are_those_of_the_definition() {
  for (bool nested : {false, true}) {
    for (int64_t bits : {4, 8}) {
      Random random(7);
      Weight weight(random, bits, 9, 33, 32, nested);
      lora4j::Quantized q = {weight.q.packed, bits, 9, 33, 32, weight.q.scales, weight.q.scale_codes, weight.q.scale_map,
                             weight.q.scale_block, static_cast<float>(weight.q.offset), {}};
      for (int64_t i = 0; i < 9 * 33; i++) {
        float got = lora4j::dequantized_element(q, weight.values.data(), i / 33, i % 33);
        CHECK(got == weight.expected(i / 33, i % 33), "element %ld", i);
      }
    }
  }
}

void refuses(const char* named, int64_t bits, const std::function<void(Weight&, l4_matrix&, int64_t&)>& spoil) {
  Random random(3);
  Weight weight(random, bits, 6, 10, 32, bits == 4);
  Buffer w = random.matrix(4, 10, DType::f32, contiguous);
  l4_matrix out = *w.get();
  int64_t first = 2;
  spoil(weight, out, first);
  std::vector<unsigned char> before = w.bytes;
  CHECK(l4_dequantize(&out, &weight.q, first, &cpu) == L4_BAD_ARGUMENT, "%s", named);
  std::string text = l4_last_error();
  CHECK(text.find(std::string("l4_dequantize: ") + named) == 0, "%s", text.c_str());
  CHECK(w.bytes == before, "%s: memory changed", named);
}

void bad_arguments() {
  using W = Weight;
  using M = l4_matrix;
  refuses("weight.bits is 5", 4, [](W& w, M&, int64_t&) { w.q.bits = 5; });
  refuses("weight has size (-6, 10)", 4, [](W& w, M&, int64_t&) { w.q.rows = -6; });
  refuses("weight has size", 8, [](W& w, M&, int64_t&) { w.q.rows = w.q.cols = INT64_C(1) << 40; });
  refuses("weight.packed is null", 4, [](W& w, M&, int64_t&) { w.q.packed = nullptr; });
  refuses("weight.packed is null", 8, [](W& w, M&, int64_t&) { w.q.packed = nullptr; });
  refuses("weight.values is null", 4, [](W& w, M&, int64_t&) { w.q.values = nullptr; });
  refuses("weight.block_size is 0", 4, [](W& w, M&, int64_t&) { w.q.block_size = 0; });
  refuses("weight.scale_block is -1", 4, [](W& w, M&, int64_t&) { w.q.scale_block = -1; });
  refuses("weight.scales is null", 8, [](W& w, M&, int64_t&) { w.q.scales = nullptr; });
  refuses("weight.scales is not aligned", 8, [](W& w, M&, int64_t&) {
    w.q.scales = reinterpret_cast<const float*>(reinterpret_cast<const char*>(w.q.scales) + 2);
  });
  refuses("weight.scale_map is null", 4, [](W& w, M&, int64_t&) { w.q.scale_map = nullptr; });
  refuses("weight.offset", 4, [](W& w, M&, int64_t&) { w.q.offset = NAN; });
  refuses("weight.reserved is 1", 4, [](W& w, M&, int64_t&) { w.q.reserved = 1; });
  refuses("weight.packed overlaps w", 8, [](W& w, M& m, int64_t&) { w.q.packed = m.data; });
  refuses("w is (4, 9)", 4, [](W&, M& m, int64_t&) { m.cols = 9; });
  refuses("w has elements that share memory", 4, [](W&, M& m, int64_t&) { m.row_stride = 0; });
  refuses("first_row is 3", 4, [](W&, M&, int64_t& first) { first = 3; });
  refuses("first_row is -1", 8, [](W&, M&, int64_t& first) { first = -1; });
  Random random(3);
  Buffer w = random.matrix(4, 10, DType::f32, contiguous);
  CHECK(l4_dequantize(w.get(), nullptr, 0, &cpu) == L4_BAD_ARGUMENT, "weight");
  CHECK(l4_dequantize(nullptr, nullptr, 0, &cpu) == L4_BAD_ARGUMENT, "w");
}

}  // namespace

int main(int argc, char** argv) {
  use_instruction_set(argc, argv);
  random_weights();
  elements_are_those_of_the_definition();
  bad_arguments();
  return 0;
}
