// l4_dequantize: its checks and its dispatch.
#include "core/quantized.h"

#include <algorithm>
#include <cmath>

#include "binding/call.h"
#include "cpu/cpu.h"

namespace lora4j {
namespace {

static_assert(sizeof(l4_quantized) == 12 * 8, "callers describe weights as arrays of 8-byte fields");

// A vector the operation reads; its memory as one of its element type's size.
void check_vector(const std::string& name, const void* data, int64_t count, int64_t size, const Matrix& w) {
  if (count == 0) return;
  if (!data) refuse("weight." + name + " is null; pass " + std::to_string(count) + " elements");
  if (reinterpret_cast<uintptr_t>(data) % static_cast<uintptr_t>(size)) {
    refuse("weight." + name + " is not aligned to its element size");
  }
  // As float32, at least as long as it is.
  auto start = reinterpret_cast<uintptr_t>(data);
  Matrix bytes = {reinterpret_cast<void*>(start), 1, (count * size + 3) / 4, 0, 1, DType::f32};
  check_apart("weight." + name, bytes, "w", w);
}

Quantized check_weight(const l4_quantized* weight, const Matrix& w) {
  if (!weight) refuse("weight is null; pass a quantized weight");
  const l4_quantized& q = *weight;
  int64_t elements;
  if (q.rows < 0 || q.cols < 0 || __builtin_mul_overflow(q.rows, q.cols, &elements) || elements > INT64_MAX / 8) {
    refuse("weight has size (" + std::to_string(q.rows) + ", " + std::to_string(q.cols) + "); no memory holds it");
  }
  if (q.bits != 4 && q.bits != 8) refuse("weight.bits is " + std::to_string(q.bits) + "; it must be 4 or 8");
  if (q.reserved != 0) refuse("weight.reserved is " + std::to_string(q.reserved) + "; it must be 0");
  Quantized checked = {};
  checked.packed = q.packed;
  checked.bits = q.bits;
  checked.rows = q.rows;
  checked.cols = q.cols;
  checked.scales = q.scales;
  if (q.bits == 8) {
    check_vector("packed", q.packed, elements, 1, w);
    check_vector("scales", q.scales, q.rows, 4, w);
    return checked;
  }
  if (q.block_size < 1) refuse("weight.block_size is " + std::to_string(q.block_size) + "; it must be 1 or more");
  if (!q.values) refuse("weight.values is null; pass the 16 values of the codes");
  std::copy(q.values, q.values + 16, checked.values);
  int64_t blocks = elements / q.block_size + (elements % q.block_size ? 1 : 0);
  check_vector("packed", q.packed, elements / 2 + elements % 2, 1, w);
  checked.block_size = q.block_size;
  if (!q.scale_codes) {
    check_vector("scales", q.scales, blocks, 4, w);
    return checked;
  }
  if (q.scale_block < 1) refuse("weight.scale_block is " + std::to_string(q.scale_block) + "; it must be 1 or more");
  check_vector("scale_codes", q.scale_codes, blocks, 1, w);
  check_vector("scale_map", q.scale_map, 256, 4, w);
  check_vector("scales", q.scales, blocks / q.scale_block + (blocks % q.scale_block ? 1 : 0), 4, w);
  checked.scale_codes = q.scale_codes;
  checked.scale_map = q.scale_map;
  checked.scale_block = q.scale_block;
  checked.offset = static_cast<float>(q.offset);
  if (!std::isfinite(checked.offset)) refuse("weight.offset is not finite in float32; the weight is broken");
  return checked;
}

void dequantize(const l4_matrix* w, const l4_quantized* weight, int64_t first_row, const l4_place* where) {
  Place place = check_place(where);
  check_device(place);
  Matrix out = check_matrix("w", w);
  check_writable("w", out);
  Quantized checked = check_weight(weight, out);
  if (out.cols != checked.cols) {
    refuse("w is " + shape(out) + " but the weight has " + std::to_string(checked.cols) + " columns; both have as many");
  }
  if (first_row < 0 || first_row > checked.rows || out.rows > checked.rows - first_row) {
    refuse("first_row is " + std::to_string(first_row) + " and w has " + std::to_string(out.rows) +
           " rows, but the weight has " + std::to_string(checked.rows) + "; ask for rows it has");
  }
  if (empty(out)) return;
  DequantizeParams params = {out, checked, first_row};
#ifdef L4_CUDA_ARCHS
  if (place.device == L4_CUDA) return check_cuda(dequantize_cuda(params, place));
#endif
  if (!dequantize_cpu(params, thread_count)) throw std::bad_alloc();
}

}  // namespace
}  // namespace lora4j

extern "C" int l4_dequantize(const l4_matrix* w, const l4_quantized* weight, int64_t first_row, const l4_place* place) {
  return lora4j::guarded("l4_dequantize", [&] { lora4j::dequantize(w, weight, first_row, place); });
}
