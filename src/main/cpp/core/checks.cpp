#include "core/checks.h"

#include <cmath>
#include <limits>

namespace lora4j {
namespace {

constexpr int64_t most_rows = std::numeric_limits<int32_t>::max();

static_assert(sizeof(l4_matrix) == 6 * 8 && sizeof(l4_low_rank) == 13 * 8 && sizeof(l4_place) == 3 * 8,
              "callers describe matrices as arrays of 8-byte fields");

}  // namespace

void refuse(const std::string& message) { throw Error{L4_BAD_ARGUMENT, message}; }

std::string shape(const Matrix& m) { return "(" + std::to_string(m.rows) + ", " + std::to_string(m.cols) + ")"; }

bool empty(const Matrix& m) { return m.rows == 0 || m.cols == 0; }

// Bytes from the first element to the end of the last one.
static uint64_t extent(const Matrix& m) {
  if (empty(m)) return 0;
  int64_t last = (m.rows - 1) * m.row_stride + (m.cols - 1) * m.col_stride;
  return static_cast<uint64_t>(last + 1) * static_cast<uint64_t>(size_of(m.type));
}

static void check_reach(const std::string& name, const Matrix& m) {
  int64_t across;
  int64_t down;
  int64_t last;
  int64_t bytes;
  int64_t count;
  if (__builtin_mul_overflow(m.rows, m.cols, &count) ||
      __builtin_mul_overflow(m.rows ? m.rows - 1 : 0, m.row_stride, &down) ||
      __builtin_mul_overflow(m.cols ? m.cols - 1 : 0, m.col_stride, &across) ||
      __builtin_add_overflow(down, across, &last) || __builtin_mul_overflow(last, int64_t{4}, &bytes)) {
    refuse(name + ": sizes and strides reach beyond 64-bit memory; pass the matrix's own sizes and strides");
  }
}

namespace {

Matrix check_as(const std::string& name, const l4_matrix* m, int64_t last_type, const char* types) {
  if (!m) refuse(name + " is null; pass a matrix");
  if (m->rows < 0 || m->cols < 0) {
    refuse(name + " has negative size (" + std::to_string(m->rows) + ", " + std::to_string(m->cols) +
           "); sizes count from 0");
  }
  if (m->row_stride < 0 || m->col_stride < 0) {
    refuse(name + " has negative stride (" + std::to_string(m->row_stride) + ", " + std::to_string(m->col_stride) +
           "); copy the matrix");
  }
  if (m->dtype < L4_F32 || m->dtype > last_type) {
    refuse(name + " has dtype " + std::to_string(m->dtype) + "; it must be " + types);
  }
  Matrix checked = {m->data, m->rows, m->cols, m->row_stride, m->col_stride, static_cast<DType>(m->dtype)};
  check_reach(name, checked);
  if (!empty(checked)) {
    if (!m->data) refuse(name + " has a null data pointer but size " + shape(checked) + "; pass its memory");
    if (reinterpret_cast<uintptr_t>(m->data) % static_cast<uintptr_t>(size_of(checked.type))) {
      refuse(name + " is not aligned to its element size; copy the matrix");
    }
  }
  return checked;
}

}  // namespace

Matrix check_matrix(const std::string& name, const l4_matrix* m) {
  return check_as(name, m, L4_F16, "0 (f32), 1 (bf16) or 2 (f16)");
}

Matrix check_stored(const std::string& name, const l4_matrix* m) {
  return check_as(name, m, L4_F8_E4M3, "0 (f32), 1 (bf16), 2 (f16) or 3 (f8 e4m3)");
}

void check_writable(const std::string& name, const Matrix& m) {
  if (empty(m)) return;
  int64_t row = m.rows == 1 ? 0 : m.row_stride;
  int64_t col = m.cols == 1 ? 0 : m.col_stride;
  bool distinct = row >= col ? (m.cols == 1 || col > 0) && (m.rows == 1 || row > (m.cols - 1) * col)
                             : (m.rows == 1 || row > 0) && (m.cols == 1 || col > (m.rows - 1) * row);
  if (!distinct) {
    refuse(name + " has elements that share memory (strides " + std::to_string(m.row_stride) + ", " +
           std::to_string(m.col_stride) + "); copy the matrix");
  }
}

// Exact for matrices apart in memory and for column blocks of one buffer; otherwise errs towards true.
bool may_overlap(const Matrix& a, const Matrix& b) {
  if (empty(a) || empty(b)) return false;
  auto a0 = reinterpret_cast<uintptr_t>(a.data);
  auto b0 = reinterpret_cast<uintptr_t>(b.data);
  if (a0 + extent(a) <= b0 || b0 + extent(b) <= a0) return false;
  uint64_t pitch = static_cast<uint64_t>(a.row_stride * size_of(a.type));
  if (pitch == 0 || pitch != static_cast<uint64_t>(b.row_stride * size_of(b.type))) return true;
  auto width = [](const Matrix& m) {
    return static_cast<uint64_t>((m.cols - 1) * m.col_stride + 1) * static_cast<uint64_t>(size_of(m.type));
  };
  uint64_t shift = b0 >= a0 ? (b0 - a0) % pitch : (pitch - (a0 - b0) % pitch) % pitch;
  return shift < width(a) || shift + width(b) > pitch;
}

void check_apart(const std::string& name, const Matrix& m, const std::string& written_name, const Matrix& written) {
  if (may_overlap(written, m)) refuse(name + " overlaps " + written_name + "; copy it");
}

std::vector<LowRank> check_updates(const std::string& list, const l4_low_rank* updates, int64_t count, int64_t in,
                                   int64_t out, const std::string& written_name, const Matrix& written) {
  if (count < 0) refuse("count is " + std::to_string(count) + "; it must be 0 or more");
  if (count > 0 && !updates) refuse(list + " is null but count is " + std::to_string(count) + "; pass the array");
  std::vector<LowRank> checked;
  checked.reserve(static_cast<size_t>(count));
  for (int64_t i = 0; i < count; i++) {
    std::string name = list + "[" + std::to_string(i) + "]";
    LowRank update = {check_matrix(name + ".a", &updates[i].a), check_matrix(name + ".b", &updates[i].b),
                      static_cast<float>(updates[i].scale)};
    if (update.a.rows < 1 || update.a.rows != update.b.cols || update.a.cols != in || update.b.rows != out) {
      refuse(name + " has a " + shape(update.a) + " and b " + shape(update.b) + "; they must be (rank, " +
             std::to_string(in) + ") and (" + std::to_string(out) + ", rank) with rank >= 1");
    }
    if (!std::isfinite(update.scale)) refuse(name + ".scale is not finite in float32; correct the scaling");
    check_apart(name + ".a", update.a, written_name, written);
    check_apart(name + ".b", update.b, written_name, written);
    checked.push_back(update);
  }
  return checked;
}

void check_row_numbers(const int32_t* rows, int64_t row_count, int64_t count) {
  if (row_count > most_rows) refuse(std::to_string(row_count) + " rows are given; split calls above 2^31 - 1 rows");
  if (row_count > 0 && !rows) refuse("rows is null; pass one adapter index, or -1, for each row");
  for (int64_t t = 0; t < row_count; t++) {
    if (rows[t] < -1 || rows[t] >= count) {
      refuse("rows[" + std::to_string(t) + "] is " + std::to_string(rows[t]) + " but there are " +
             std::to_string(count) + " adapters; use -1 for a row without one");
    }
  }
}

Place check_place(const l4_place* place) {
  if (!place) refuse("place is null; pass {L4_CPU, 0, NULL} for CPU memory");
  if (place->device != L4_CPU && place->device != L4_CUDA) {
    refuse("place.device is " + std::to_string(place->device) + "; it must be 0 (CPU) or 1 (CUDA)");
  }
  if (place->ordinal < 0 || place->ordinal > most_rows) {
    refuse("place.ordinal is " + std::to_string(place->ordinal) + "; devices count from 0");
  }
  if (place->device == L4_CPU && (place->ordinal != 0 || place->stream)) {
    refuse("place.ordinal and place.stream must be 0 on the CPU");
  }
  return {static_cast<int>(place->device), static_cast<int>(place->ordinal), place->stream};
}

CheckedMerge check_merge(const l4_matrix* w, const l4_matrix* from, const l4_low_rank* updates, int64_t count,
                         const float* row_factors) {
  Matrix target = check_stored("w", w);
  check_writable("w", target);
  Matrix source = target;
  if (from) {
    source = check_stored("from", from);
    if (source.rows != target.rows || source.cols != target.cols || source.type != target.type) {
      refuse("from is " + shape(source) + " of dtype " + std::to_string(from->dtype) + " and w is " + shape(target) +
             " of dtype " + std::to_string(w->dtype) + "; they must be alike");
    }
    bool same = source.data == target.data && source.row_stride == target.row_stride &&
                source.col_stride == target.col_stride;
    if (!same) check_apart("from", source, "w", target);
  }
  CheckedMerge checked = {target, source,
                          check_updates("updates", updates, count, target.cols, target.rows, "w", target),
                          {row_factors, false}};
  if (row_factors) {
    if (count == 0) refuse("row_factors are given without updates; pass null, or the adapter's update");
    l4_matrix factors = {const_cast<float*>(row_factors), target.rows, 1, 1, 1, L4_F32};
    check_apart("row_factors", check_matrix("row_factors", &factors), "w", target);
  }
  return checked;
}

CheckedLowRankUpdate check_low_rank_update(const l4_matrix* y, const l4_matrix* x, const int32_t* rows,
                                           const l4_low_rank* adapters, int64_t count) {
  Matrix out = check_matrix("y", y);
  Matrix in = check_matrix("x", x);
  check_writable("y", out);
  if (in.rows != out.rows) refuse("x is " + shape(in) + " and y is " + shape(out) + "; both need one row per token");
  check_apart("x", in, "y", out);
  std::vector<LowRank> checked = check_updates("adapters", adapters, count, in.cols, out.cols, "y", out);
  check_row_numbers(rows, out.rows, count);
  return {out, in, std::move(checked)};
}

}  // namespace lora4j
