// scatter and gather: each element in its place, with its bits, and nothing else changed.
#include <algorithm>
#include <numeric>

#include "check.h"
#include "core/pages.h"

namespace {

using namespace test;

struct Case {
  std::vector<Buffer> buffers;
  std::vector<l4_matrix> matrices;
  Buffer memory;
  l4_pool pool{};
  std::vector<int32_t> pages;

  Case(Random& random, int64_t page_size, DType type) {
    int64_t elements = 0;
    for (int64_t i = random.below(6); i > 0; i--) {
      buffers.push_back(random.matrix(random.below(20), random.below(70)));
      elements += buffers.back().matrix.rows * buffers.back().matrix.cols;
    }
    for (Buffer& buffer : buffers) matrices.push_back(*buffer.get());
    int64_t needed = (elements + page_size - 1) / page_size;
    int64_t count = needed + 1 + random.below(5);
    memory = random.matrix(count, page_size, type, contiguous);
    pool = {memory.get()->data, count, page_size, static_cast<int64_t>(type)};
    for (int64_t p = 0; p < count; p++) pages.push_back(static_cast<int32_t>(p));
    for (size_t p = pages.size() - 1; p > 0; p--) std::swap(pages[p], pages[static_cast<size_t>(random.below(static_cast<int64_t>(p) + 1))]);
    pages.resize(static_cast<size_t>(needed));
  }

  int scatter() {
    return l4_scatter(&pool, pages.data(), static_cast<int64_t>(pages.size()), matrices.data(),
                      static_cast<int64_t>(matrices.size()), &cpu);
  }
  int gather() {
    return l4_gather(matrices.data(), static_cast<int64_t>(matrices.size()), &pool, pages.data(),
                     static_cast<int64_t>(pages.size()), &cpu);
  }
};

void random_cases() {
  const std::vector<int64_t> sizes = {1, 3, 64, 100, 5000};
  for (unsigned seed = 0; seed < 120; seed++) {
    Random random(seed);
    Case c(random, random.pick(sizes), random.type());
    // What the pool holds afterwards, by elements.
    std::vector<unsigned char> expected = c.memory.bytes;
    int64_t at = 0;
    for (Buffer& buffer : c.buffers) {
      Matrix m = buffer.view();
      for (int64_t i = 0; i < m.rows * m.cols; i++, at++) {
        int64_t to = c.pages[static_cast<size_t>(at / c.pool.page_size)] * c.pool.page_size + at % c.pool.page_size;
        CHECK(to == lora4j::pool_index(c.pool.page_size, c.pages.data(), at), "seed %u", seed);
        lora4j::store(expected.data(), to, static_cast<DType>(c.pool.dtype), m.at(i / m.cols, i % m.cols));
      }
    }
    CHECK(c.scatter() == L4_OK, "seed %u", seed);
    CHECK(c.memory.bytes == expected, "seed %u: other bytes in the pool", seed);
    // Back into matrices of other values: what the pool's type has kept of them, and nothing between.
    std::vector<std::vector<unsigned char>> back;
    at = 0;
    for (Buffer& buffer : c.buffers) {
      back.push_back(buffer.bytes);
      Matrix m = buffer.view();
      m.data = back.back().data();
      for (int64_t i = 0; i < m.rows * m.cols; i++, at++) {
        int64_t from = lora4j::pool_index(c.pool.page_size, c.pages.data(), at);
        m.set(i / m.cols, i % m.cols, lora4j::load(expected.data(), from, static_cast<DType>(c.pool.dtype)));
        buffer.view().set(i / m.cols, i % m.cols, 77);
      }
    }
    CHECK(c.gather() == L4_OK, "seed %u", seed);
    for (size_t i = 0; i < back.size(); i++) CHECK(c.buffers[i].bytes == back[i], "seed %u: matrix %zu differs", seed, i);
  }
}

// A signalling NaN with a payload passes through unchanged.
void bits_are_kept() {
  for (Layout layout : {contiguous, transposed}) {
    Random random(1);
    Buffer m = random.matrix(3, 4, DType::f32, layout);
    uint32_t odd = 0x7f8000ab;
    std::memcpy(m.bytes.data() + 8, &odd, 4);
    std::vector<unsigned char> before = m.bytes;
    Buffer memory = random.matrix(4, 3, DType::f32, contiguous);
    l4_pool pool = {memory.get()->data, 4, 3, L4_F32};
    int32_t pages[] = {2, 0, 3, 1};
    CHECK(l4_scatter(&pool, pages, 4, m.get(), 1, &cpu) == L4_OK, "scatter");
    std::fill(m.bytes.begin(), m.bytes.end(), static_cast<unsigned char>(0));
    CHECK(l4_gather(m.get(), 1, &pool, pages, 4, &cpu) == L4_OK, "gather");
    CHECK(m.bytes == before, "bits changed");
  }
}

struct Arguments {
  Random random{2};
  Buffer a = random.matrix(2, 5, DType::f32, contiguous);
  Buffer b = random.matrix(3, 2, DType::f16, contiguous);
  Buffer memory = random.matrix(4, 6, DType::f32, contiguous);
  std::vector<l4_matrix> matrices = {*a.get(), *b.get()};
  l4_pool pool = {memory.get()->data, 4, 6, L4_F32};
  std::vector<int32_t> pages = {3, 0, 1};
  const l4_matrix* list = matrices.data();
  const int32_t* pages_at = pages.data();
  int64_t count = 2;
  int64_t page_count = 3;
};

void refuses(const char* named, bool scatter, const std::function<void(Arguments&)>& spoil) {
  Arguments a;
  spoil(a);
  std::vector<unsigned char> before[] = {a.a.bytes, a.b.bytes, a.memory.bytes};
  int code = scatter ? l4_scatter(&a.pool, a.pages_at, a.page_count, a.list, a.count, &cpu)
                     : l4_gather(a.list, a.count, &a.pool, a.pages_at, a.page_count, &cpu);
  CHECK(code == L4_BAD_ARGUMENT, "%s: code %d", named, code);
  std::string text = l4_last_error();
  CHECK(text.find(std::string(scatter ? "l4_scatter: " : "l4_gather: ") + named) == 0, "%s", text.c_str());
  CHECK(a.a.bytes == before[0] && a.b.bytes == before[1] && a.memory.bytes == before[2], "%s: memory changed", named);
}

void bad_arguments() {
  using A = Arguments;
  for (bool scatter : {false, true}) {
    refuses("pool.page_size is 0", scatter, [](A& a) { a.pool.page_size = 0; });
    refuses("pool has negative size", scatter, [](A& a) { a.pool.pages = -1; });
    refuses("pool has dtype 3", scatter, [](A& a) { a.pool.dtype = 3; });
    refuses("pool has a null data pointer", scatter, [](A& a) { a.pool.data = nullptr; });
    refuses("pages[0] is 3", scatter, [](A& a) { a.pool.pages = 3; });
    refuses("pages[1] is -1", scatter, [](A& a) { a.pages[1] = -1; });
    refuses("pages is null", scatter, [](A& a) { a.pages_at = nullptr; });
    refuses("page_count is -1", scatter, [](A& a) { a.page_count = -1; });
    refuses("page_count is 2", scatter, [](A& a) { a.page_count = 2; });
    refuses("matrices is null", scatter, [](A& a) { a.list = nullptr; });
    refuses("count is -1", scatter, [](A& a) { a.count = -1; });
    refuses("matrices[1] has negative stride", scatter, [](A& a) { a.matrices[1].row_stride = -2; });
    refuses("matrices[1] overlaps pool", scatter, [](A& a) { a.matrices[1].data = a.pool.data; });
  }
  refuses("pages has page 3 twice", true, [](A& a) { a.pages[2] = 3; });
  refuses("matrices[0] has elements that share memory", false, [](A& a) { a.matrices[0].row_stride = 0; });
  refuses("matrices[0] overlaps matrices[1]", false, [](A& a) { a.matrices[1] = a.matrices[0]; });
  CHECK(l4_scatter(nullptr, nullptr, 0, nullptr, 0, &cpu) == L4_BAD_ARGUMENT, "pool");
}

}  // namespace

int main(int argc, char** argv) {
  use_instruction_set(argc, argv);
  random_cases();
  bits_are_kept();
  bad_arguments();
  return 0;
}
