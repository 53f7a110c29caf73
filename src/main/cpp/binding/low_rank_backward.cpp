// l4_low_rank_backward: its checks and its dispatch.
#include "core/low_rank_backward.h"

#include <algorithm>
#include <vector>

#include "binding/call.h"
#include "cpu/cpu.h"

namespace lora4j {
namespace {

static_assert(sizeof(l4_low_rank_gradient) == 12 * 8, "callers describe gradients as arrays of 8-byte fields");

Matrix check_gradient(const std::string& name, const l4_matrix& m, const Matrix& factor) {
  Matrix checked = check_matrix(name, &m);
  if (empty(checked)) return {};
  if (checked.rows != factor.rows || checked.cols != factor.cols) {
    refuse(name + " is " + shape(checked) + " but the factor is " + shape(factor) +
           "; pass a gradient of its shape, or an empty matrix for none");
  }
  check_writable(name, checked);
  return checked;
}

// Memory of a factor or a gradient, from its first element to the end of its last.
struct Span {
  uintptr_t start;
  uintptr_t end;
  bool written;
  std::string name;
};

Span span_of(const std::string& name, const Matrix& m, bool written) {
  auto start = reinterpret_cast<uintptr_t>(m.data);
  int64_t last = (m.rows - 1) * m.row_stride + (m.cols - 1) * m.col_stride;
  return {start, start + static_cast<uintptr_t>((last + 1) * size_of(m.type)), written, name};
}

// Refuses gradients that reach into each other or into factors.
void check_spans(std::vector<Span> spans) {
  std::sort(spans.begin(), spans.end(), [](const Span& a, const Span& b) { return a.start < b.start; });
  const Span* reaching = nullptr;          // furthest so far
  const Span* written_reaching = nullptr;  // furthest of those written
  for (const Span& span : spans) {
    const Span* other = span.written ? reaching : written_reaching;
    if (other && other->end > span.start) {
      const Span& gradient = span.written ? span : *other;
      const Span& rest = span.written ? *other : span;
      refuse(gradient.name + " overlaps " + rest.name + "; give each gradient memory of its own");
    }
    if (!reaching || span.end > reaching->end) reaching = &span;
    if (span.written && (!written_reaching || span.end > written_reaching->end)) written_reaching = &span;
  }
}

struct Checked {
  LowRankBackwardParams params;
  std::vector<LowRank> adapters;
  std::vector<Gradient> gradients;
};

Matrix check_rows(const std::string& name, const l4_matrix* m, const Matrix& dy) {
  Matrix checked = check_matrix(name, m);
  if (checked.rows != dy.rows) {
    refuse(name + " is " + shape(checked) + " and dy is " + shape(dy) + "; both need one row per token");
  }
  return checked;
}

Checked check(const l4_matrix* dx, const l4_matrix* dy, const l4_matrix* x, const l4_matrix* h, const int32_t* rows,
              const l4_low_rank* adapters, const l4_low_rank_gradient* gradients, int64_t count) {
  Checked checked = {};
  Matrix out = check_matrix("dy", dy);
  Matrix in = check_rows("x", x, out);
  Matrix target = {};
  if (dx) {
    target = check_rows("dx", dx, out);
    if (target.cols != in.cols) refuse("dx is " + shape(target) + " but x is " + shape(in) + "; both have one shape");
    check_writable("dx", target);
  }
  checked.adapters = check_updates("adapters", adapters, count, in.cols, out.cols, "dx", target);
  check_row_numbers(rows, out.rows, count);
  if (count > 0 && !gradients) refuse("gradients is null; pass one for each adapter, empty matrices for none");
  Matrix kept = {};
  if (h) {
    kept = check_rows("h", h, out);
    int64_t rank = 0;
    for (const LowRank& adapter : checked.adapters) rank = std::max(rank, adapter.rank());
    if (kept.cols < rank) {
      refuse("h is " + shape(kept) + "; it needs a column for each of the largest rank's " + std::to_string(rank) +
             ", or be null");
    }
  }
  std::vector<Span> spans;
  auto read = [&](const std::string& name, const Matrix& m) {
    check_apart(name, m, "dx", target);
    if (!empty(m)) spans.push_back(span_of(name, m, false));
  };
  read("dy", out);
  read("x", in);
  read("h", kept);
  if (!empty(target)) spans.push_back(span_of("dx", target, false));
  for (int64_t i = 0; i < count; i++) {
    std::string number = "[" + std::to_string(i) + "]";
    const LowRank& adapter = checked.adapters[static_cast<size_t>(i)];
    read("adapters" + number + ".a", adapter.a);
    read("adapters" + number + ".b", adapter.b);
    Gradient gradient = {check_gradient("gradients" + number + ".a", gradients[i].a, adapter.a),
                         check_gradient("gradients" + number + ".b", gradients[i].b, adapter.b)};
    if (!empty(gradient.a)) spans.push_back(span_of("gradients" + number + ".a", gradient.a, true));
    if (!empty(gradient.b)) spans.push_back(span_of("gradients" + number + ".b", gradient.b, true));
    checked.gradients.push_back(gradient);
  }
  check_spans(std::move(spans));
  checked.params = {target, out, in, kept, rows, nullptr, nullptr, count};
  return checked;
}

void backward(const l4_matrix* dx, const l4_matrix* dy, const l4_matrix* x, const l4_matrix* h, const int32_t* rows,
              const l4_low_rank* adapters, const l4_low_rank_gradient* gradients, int64_t count,
              [[maybe_unused]] void* scratch, [[maybe_unused]] int64_t scratch_bytes, const l4_place* where) {
  Place place = check_place(where);
  check_device(place);
  Checked checked = check(dx, dy, x, h, rows, adapters, gradients, count);
  checked.params.adapters = checked.adapters.data();
  checked.params.gradients = checked.gradients.data();
  if (checked.params.dy.rows == 0 || count == 0) return;
#ifdef L4_CUDA_ARCHS
  if (place.device == L4_CUDA) {
    int64_t rank = 0;
    for (const LowRank& adapter : checked.adapters) rank = std::max(rank, adapter.rank());
    check_limit("rank", rank, most_cuda_rank);
    const Matrix& out = checked.params.dy;
    check_scratch(scratch, scratch_bytes,
                  low_rank_backward_cuda_scratch(checked.params.x.cols, out.cols, rank));
    return check_cuda(low_rank_backward_cuda(checked.params, scratch, place));
  }
#endif
  if (!low_rank_backward_cpu(checked.params, thread_count)) throw std::bad_alloc();
}

int64_t backward_scratch(int64_t in, int64_t out, int64_t rank, const l4_place* where) {
  Place place = check_place(where);
  check_device(place);
  constexpr int64_t most = int64_t{1} << 31;  // so that no size in bytes overflows
  for (int64_t size : {in, out, rank}) {
    if (size < 0 || size > most) refuse("in, out or rank is " + std::to_string(size) + "; pass sizes of the call");
  }
  if (rank > most / (in + out + 1)) refuse("rank is " + std::to_string(rank) + "; no memory holds its products");
#ifdef L4_CUDA_ARCHS
  if (place.device == L4_CUDA) return low_rank_backward_cuda_scratch(in, out, rank);
#endif
  return 0;
}

}  // namespace
}  // namespace lora4j

extern "C" {

int64_t l4_low_rank_backward_scratch(int64_t in, int64_t out, int64_t rank, const l4_place* place) {
  int64_t bytes = 0;
  int code = lora4j::guarded("l4_low_rank_backward_scratch",
                             [&] { bytes = lora4j::backward_scratch(in, out, rank, place); });
  return code == L4_OK ? bytes : -code;
}

int l4_low_rank_backward(const l4_matrix* dx, const l4_matrix* dy, const l4_matrix* x, const l4_matrix* h,
                         const int32_t* rows, const l4_low_rank* adapters, const l4_low_rank_gradient* gradients,
                         int64_t count, void* scratch, int64_t scratch_bytes, const l4_place* place) {
  return lora4j::guarded("l4_low_rank_backward", [&] {
    lora4j::backward(dx, dy, x, h, rows, adapters, gradients, count, scratch, scratch_bytes, place);
  });
}

}  // extern "C"
