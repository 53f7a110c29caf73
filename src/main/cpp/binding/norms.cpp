// l4_gram and l4_row_norms: their checks and their dispatch.
#include "core/norms.h"

#include "binding/call.h"
#include "cpu/cpu.h"

namespace lora4j {
namespace {

void gram(double* g, const l4_matrix* x, const l4_matrix* y, const l4_place* where) {
  Place place = check_place(where);
  check_device(place);
  Matrix left = check_matrix("x", x);
  Matrix right = check_matrix("y", y);
  if (left.cols != right.cols) {
    refuse("y is " + shape(right) + " but x is " + shape(left) + "; rows of both must have the same length");
  }
  if (left.rows == 0 || right.rows == 0) return;
  int64_t elements;
  if (__builtin_mul_overflow(left.rows, right.rows, &elements) || elements > INT64_MAX / 8) {
    refuse("g has no memory for " + std::to_string(left.rows) + " x " + std::to_string(right.rows) + " elements");
  }
  if (!g) refuse("g is null; pass memory for " + shape({nullptr, left.rows, right.rows, 0, 0, DType::f32}));
  if (reinterpret_cast<uintptr_t>(g) % sizeof(double)) refuse("g is not aligned to its element size");
  // Twice as many float32: the same bytes.
  Matrix out = {g, 1, 2 * elements, 0, 1, DType::f32};
  check_apart("x", left, "g", out);
  check_apart("y", right, "g", out);
  GramParams params = {g, left, right};
#ifdef L4_CUDA_ARCHS
  if (place.device == L4_CUDA) return check_cuda(gram_cuda(params, place));
#endif
  if (!gram_cpu(params, thread_count)) throw std::bad_alloc();
}

int64_t row_norms_scratch(int64_t rank, const l4_place* where) {
  Place place = check_place(where);
  check_device(place);
  if (rank < 1 || rank > (int64_t{1} << 28)) refuse("rank is " + std::to_string(rank) + "; pass that of the update");
  return place.device == L4_CPU ? 0 : rank * rank * 8;
}

void row_norms(const l4_matrix* norms, const l4_matrix* w, const l4_low_rank* update, [[maybe_unused]] void* scratch,
               [[maybe_unused]] int64_t scratch_bytes, const l4_place* where) {
  Place place = check_place(where);
  check_device(place);
  Matrix out = check_matrix("norms", norms);
  check_writable("norms", out);
  Matrix weight = check_matrix("w", w);
  if (out.rows != weight.rows || out.cols != 1) {
    refuse("norms is " + shape(out) + " but w is " + shape(weight) + "; norms must be (" + std::to_string(weight.rows) +
           ", 1)");
  }
  check_apart("w", weight, "norms", out);
  if (!update) refuse("update is null; pass the adapter's factors");
  LowRank factors = check_updates("update", update, 1, weight.cols, weight.rows, "norms", out)[0];
  if (empty(out)) return;
  RowNormsParams params = {out, weight, factors};
#ifdef L4_CUDA_ARCHS
  if (place.device == L4_CUDA) {
    check_limit("rows of w", weight.rows, INT32_MAX);
    check_limit("rank", factors.rank(), most_cuda_norm_rank);
    check_scratch(scratch, scratch_bytes, factors.rank() * factors.rank() * 8);
    return check_cuda(row_norms_cuda(params, scratch, place));
  }
#endif
  if (!row_norms_cpu(params, thread_count)) throw std::bad_alloc();
}

}  // namespace
}  // namespace lora4j

extern "C" {

int l4_gram(double* g, const l4_matrix* x, const l4_matrix* y, const l4_place* place) {
  return lora4j::guarded("l4_gram", [&] { lora4j::gram(g, x, y, place); });
}

int64_t l4_row_norms_scratch(int64_t rank, const l4_place* place) {
  int64_t bytes = 0;
  int code = lora4j::guarded("l4_row_norms_scratch", [&] { bytes = lora4j::row_norms_scratch(rank, place); });
  return code == L4_OK ? bytes : -code;
}

int l4_row_norms(const l4_matrix* norms, const l4_matrix* w, const l4_low_rank* update, void* scratch,
                 int64_t scratch_bytes, const l4_place* place) {
  return lora4j::guarded("l4_row_norms",
                         [&] { lora4j::row_norms(norms, w, update, scratch, scratch_bytes, place); });
}

}  // extern "C"
