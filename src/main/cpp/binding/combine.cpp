// l4_combine: its checks and its dispatch.
#include "core/combine.h"

#include <cmath>
#include <vector>

#include "binding/call.h"
#include "cpu/cpu.h"

namespace lora4j {
namespace {

static_assert(sizeof(l4_task_tensor) == 13 * 8, "callers describe tensors as arrays of 8-byte fields");

bool same_layout(const Matrix& a, const Matrix& b) {
  return a.data == b.data && a.type == b.type && a.row_stride == b.row_stride && a.col_stride == b.col_stride;
}

TaskTensor check_tensor(const std::string& name, const l4_task_tensor& tensor, const Matrix& y) {
  TaskTensor checked = {};
  checked.x = check_matrix(name + ".x", &tensor.x);
  if (checked.x.rows != y.rows || checked.x.cols != y.cols) {
    refuse(name + ".x is " + shape(checked.x) + " but y is " + shape(y) + "; all must have the same shape");
  }
  if (!same_layout(checked.x, y)) check_apart(name + ".x", checked.x, "y", y);
  checked.weight = static_cast<float>(tensor.weight);
  if (!std::isfinite(checked.weight)) refuse(name + ".weight is not finite in float32; correct the weight");
  if (tensor.pruning < L4_ALL || tensor.pruning > L4_RANDOM) {
    refuse(name + ".pruning is " + std::to_string(tensor.pruning) + "; it must be 0 (all), 1 (largest) or 2 (random)");
  }
  checked.pruning = static_cast<Pruning>(tensor.pruning);
  if (checked.pruning == Pruning::largest) {
    checked.kept = tensor.kept;
    if (tensor.kept < 0 || tensor.kept > y.rows * y.cols) {
      refuse(name + ".kept is " + std::to_string(tensor.kept) + "; it must be 0 to " + std::to_string(y.rows * y.cols) +
             ", the number of elements");
    }
  }
  if (checked.pruning == Pruning::random) {
    if (!(tensor.density >= 0 && tensor.density <= 1)) {
      refuse(name + ".density is " + std::to_string(tensor.density) + "; it must be 0 to 1");
    }
    if (tensor.rescale != 0 && tensor.rescale != 1) {
      refuse(name + ".rescale is " + std::to_string(tensor.rescale) + "; it must be 0 or 1");
    }
    checked.keep_below = static_cast<uint64_t>(tensor.density * 0x1p32);
    checked.divisor = tensor.rescale && checked.keep_below > 0 ? static_cast<float>(tensor.density) : 1.0f;
    checked.seed = tensor.seed;
    checked.stream = tensor.stream;
  }
  return checked;
}

void combine(const l4_matrix* y, const l4_task_tensor* tensors, int64_t count, int64_t election,
             [[maybe_unused]] void* scratch, [[maybe_unused]] int64_t scratch_bytes, const l4_place* where) {
  Place place = check_place(where);
  check_device(place);
  Matrix out = check_matrix("y", y);
  check_writable("y", out);
  if (count < 1) refuse("count is " + std::to_string(count) + "; pass at least one tensor");
  if (!tensors) refuse("tensors is null but count is " + std::to_string(count) + "; pass the array");
  if (election < L4_NO_ELECTION || election > L4_FREQUENCY) {
    refuse("election is " + std::to_string(election) + "; it must be 0 (none), 1 (total) or 2 (frequency)");
  }
  std::vector<TaskTensor> checked;
  for (int64_t i = 0; i < count; i++) {
    checked.push_back(check_tensor("tensors[" + std::to_string(i) + "]", tensors[i], out));
  }
  if (empty(out)) return;
  CombineParams params = {out, checked.data(), count, static_cast<Election>(election)};
#ifdef L4_CUDA_ARCHS
  if (place.device == L4_CUDA) {
    check_limit("count", count, most_cuda_tensors);
    check_scratch(scratch, scratch_bytes, combine_cuda_scratch(out.rows, out.cols));
    return check_cuda(combine_cuda(params, scratch, place));
  }
#endif
  if (!combine_cpu(params, thread_count)) throw std::bad_alloc();
}

int64_t combine_scratch(int64_t rows, int64_t cols, const l4_place* where) {
  Place place = check_place(where);
  check_device(place);
  int64_t elements;
  if (rows < 0 || cols < 0 || __builtin_mul_overflow(rows, cols, &elements)) {
    refuse("rows and cols are " + std::to_string(rows) + " and " + std::to_string(cols) + "; pass the shape of y");
  }
#ifdef L4_CUDA_ARCHS
  if (place.device == L4_CUDA) return combine_cuda_scratch(rows, cols);
#endif
  return 0;
}

}  // namespace
}  // namespace lora4j

extern "C" {

int64_t l4_combine_scratch(int64_t rows, int64_t cols, const l4_place* place) {
  int64_t bytes = 0;
  int code = lora4j::guarded("l4_combine_scratch", [&] { bytes = lora4j::combine_scratch(rows, cols, place); });
  return code == L4_OK ? bytes : -code;
}

int l4_combine(const l4_matrix* y, const l4_task_tensor* tensors, int64_t count, int64_t election, void* scratch,
               int64_t scratch_bytes, const l4_place* place) {
  return lora4j::guarded("l4_combine",
                         [&] { lora4j::combine(y, tensors, count, election, scratch, scratch_bytes, place); });
}

}  // extern "C"
