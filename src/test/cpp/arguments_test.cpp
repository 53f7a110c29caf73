// Every bad argument is an error that names it and leaves the output as it was.
#include "check.h"

namespace {

using namespace test;

constexpr int64_t out = 3;
constexpr int64_t in = 5;

struct Arguments {
  Random random{1};
  Buffer w = random.matrix(out, in, DType::bf16, contiguous);
  Buffer y = random.matrix(2, out, DType::f32, contiguous);
  Buffer x = random.matrix(2, in, DType::f32, contiguous);
  Updates updates;
  std::vector<int32_t> rows = {0, -1};
  l4_place place = cpu;
  const l4_matrix* w_at = nullptr;
  const l4_matrix* y_at = nullptr;
  const l4_matrix* x_at = nullptr;
  const l4_low_rank* list = nullptr;
  const int32_t* rows_at = nullptr;
  const l4_place* place_at = nullptr;
  int64_t count = 1;

  Arguments() {
    updates.add(random, 2, in, out);
    w_at = w.get();
    y_at = y.get();
    x_at = x.get();
    list = updates.list.data();
    rows_at = rows.data();
    place_at = &place;
  }

  int merge() { return l4_merge(w_at, list, count, place_at); }
  int update() { return l4_low_rank_update(y_at, x_at, rows_at, list, count, place_at); }
};

void refuses(const char* named, bool merge, int code, const std::function<void(Arguments&)>& spoil) {
  Arguments arguments;
  spoil(arguments);
  std::vector<unsigned char> w = arguments.w.bytes;
  std::vector<unsigned char> y = arguments.y.bytes;
  int got = merge ? arguments.merge() : arguments.update();
  CHECK(got == code, "%s: code %d, expected %d", named, got, code);
  std::string text = l4_last_error();
  CHECK(text.find(std::string(merge ? "l4_merge: " : "l4_low_rank_update: ") + named) == 0, "%s", text.c_str());
  CHECK(arguments.w.bytes == w && arguments.y.bytes == y, "%s: memory changed", named);
}

void refuses(const char* named, bool merge, const std::function<void(Arguments&)>& spoil) {
  refuses(named, merge, L4_BAD_ARGUMENT, spoil);
}

using A = Arguments;

void bad_merges() {
  refuses("w is null", true, [](A& a) { a.w_at = nullptr; });
  refuses("w has a null data pointer", true, [](A& a) { a.w.matrix.data = nullptr; });
  refuses("w is not aligned", true, [](A& a) { a.w.matrix.data = static_cast<char*>(a.w.matrix.data) + 1; });
  refuses("w has negative size", true, [](A& a) { a.w.matrix.rows = -1; });
  refuses("w has negative stride", true, [](A& a) { a.w.matrix.col_stride = -1; });
  refuses("w has dtype 4", true, [](A& a) { a.w.matrix.dtype = 4; });
  refuses("w has dtype -1", true, [](A& a) { a.w.matrix.dtype = -1; });
  refuses("w: sizes and strides", true, [](A& a) { a.w.matrix.row_stride = INT64_MAX / 2; });
  refuses("w: sizes and strides", true, [](A& a) { a.w.matrix.rows = a.w.matrix.cols = INT64_C(1) << 40; });
  refuses("w has elements that share memory", true, [](A& a) { a.w.matrix.row_stride = 0; });
  refuses("w has elements that share memory", true, [](A& a) { a.w.matrix.row_stride = in - 1; });
  refuses("count is -1", true, [](A& a) { a.count = -1; });
  refuses("updates is null", true, [](A& a) { a.list = nullptr; });
  refuses("updates[0] has a", true, [](A& a) { a.updates.list[0].a.rows = 1; });
  refuses("updates[0] has a", true, [](A& a) { a.updates.list[0].a.rows = a.updates.list[0].b.cols = 0; });
  refuses("updates[0] has a", true, [](A& a) { a.w.matrix.cols = in - 1; });
  refuses("updates[0].a has a null data pointer", true, [](A& a) { a.updates.list[0].a.data = nullptr; });
  refuses("updates[0].b has dtype 7", true, [](A& a) { a.updates.list[0].b.dtype = 7; });
  refuses("updates[0].scale", true, [](A& a) { a.updates.list[0].scale = NAN; });
  refuses("updates[0].scale", true, [](A& a) { a.updates.list[0].scale = 1e300; });
  refuses("updates[0].b overlaps w", true, [](A& a) {
    a.updates.list[0].b = {a.w.matrix.data, out, 2, in, 1, L4_BF16};
  });
  refuses("place is null", true, [](A& a) { a.place_at = nullptr; });
  refuses("place.device is 2", true, [](A& a) { a.place.device = 2; });
  refuses("place.ordinal is -1", true, [](A& a) { a.place.ordinal = -1; });
  refuses("place.ordinal and place.stream", true, [](A& a) { a.place.stream = &a; });
  if (!l4_has_device(L4_CUDA)) {
    refuses("place.device is CUDA", true, L4_UNSUPPORTED, [](A& a) { a.place.device = L4_CUDA; });
  }
}

void bad_updates() {
  refuses("y is null", false, [](A& a) { a.y_at = nullptr; });
  refuses("x is null", false, [](A& a) { a.x_at = nullptr; });
  refuses("x is (1, 5)", false, [](A& a) { a.x.matrix.rows = 1; });
  refuses("x overlaps y", false, [](A& a) { a.x.matrix.data = a.y.matrix.data; });
  refuses("y has elements that share memory", false, [](A& a) { a.y.matrix.col_stride = 0; });
  refuses("rows is null", false, [](A& a) { a.rows_at = nullptr; });
  refuses("rows[1] is 1", false, [](A& a) { a.rows[1] = 1; });
  refuses("rows[0] is -2", false, [](A& a) { a.rows[0] = -2; });
  refuses("rows[0] is 0", false, [](A& a) { a.count = 0; });
  refuses("adapters is null", false, [](A& a) { a.list = nullptr; });
  refuses("adapters[0] has a", false, [](A& a) { a.x.matrix.cols = 4; });
  refuses("adapters[0].a overlaps y", false, [](A& a) {
    a.updates.list[0].a = {a.y.matrix.data, 2, in, 0, 1, L4_F32};
  });
}

// Column blocks of one buffer do not overlap, whichever comes first.
void column_blocks() {
  for (bool y_first : {true, false}) {
    Arguments a;
    Buffer both = a.random.matrix(2, out + in, DType::f32, contiguous);
    a.y.matrix = *both.get();
    a.x.matrix = a.y.matrix;
    a.y.matrix.cols = out;
    a.x.matrix.cols = in;
    (y_first ? a.x : a.y).matrix.data = reinterpret_cast<float*>(both.bytes.data()) + (y_first ? out : in);
    CHECK(a.update() == L4_OK, "column blocks");
    a.x.matrix.data = reinterpret_cast<float*>(both.bytes.data()) + (y_first ? out - 1 : 1);
    CHECK(a.update() == L4_BAD_ARGUMENT, "column blocks that meet");
  }
}

void good_calls() {
  Arguments a;
  CHECK(a.merge() == L4_OK && a.update() == L4_OK, "the arguments are right before they are spoilt");
  CHECK(l4_set_threads(-1) == L4_BAD_ARGUMENT, "threads");
  CHECK(std::strstr(l4_last_error(), "threads is -1"), "threads");
  CHECK(l4_set_cpu_isa("sse9") == L4_UNSUPPORTED && std::strstr(l4_last_error(), "sse9"), "instruction set");
  CHECK(l4_set_merge("quick") == L4_BAD_ARGUMENT && std::strstr(l4_last_error(), "quick"), "mode of merges");
  CHECK(l4_set_merge("fast") == L4_OK && l4_set_merge(nullptr) == L4_OK, "mode of merges");
  CHECK(l4_has_device(L4_CPU) == 1 && l4_has_device(2) == 0, "devices");
  CHECK(std::strstr(l4_build_info(), l4_version()) && std::strstr(l4_build_info(), "CUDA"), "build info");
}

}  // namespace

int main() {
  good_calls();
  bad_merges();
  bad_updates();
  column_blocks();
  return 0;
}
