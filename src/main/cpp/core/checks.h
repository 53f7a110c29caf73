// Argument checks of lora4j.h. Each throws an Error that names the argument; none touches a matrix.
#pragma once

#include <string>
#include <vector>

#include "core/params.h"
#include "lora4j/lora4j.h"

namespace lora4j {

struct Error {
  int code;
  std::string message;
};

struct CheckedMerge {
  Matrix w;
  Matrix from;
  std::vector<LowRank> updates;
  RowFactors factors;
};

struct CheckedLowRankUpdate {
  Matrix y;
  Matrix x;
  std::vector<LowRank> adapters;
};

[[noreturn]] void refuse(const std::string& message);
std::string shape(const Matrix& m);
bool empty(const Matrix& m);

// The matrix, if its fields describe memory that can be read.
Matrix check_matrix(const std::string& name, const l4_matrix* m);

// The same, of bytes too.
Matrix check_stored(const std::string& name, const l4_matrix* m);

// Refuses an output two of whose elements share memory.
void check_writable(const std::string& name, const Matrix& m);

// Refuses a matrix that may share memory with one that is written.
bool may_overlap(const Matrix& a, const Matrix& b);
void check_apart(const std::string& name, const Matrix& m, const std::string& written_name, const Matrix& written);

// Updates of a matrix (out, in), apart from the one that is written.
std::vector<LowRank> check_updates(const std::string& list, const l4_low_rank* updates, int64_t count, int64_t in,
                                   int64_t out, const std::string& written_name, const Matrix& written);

// An index of an adapter, or -1, for each row.
void check_row_numbers(const int32_t* rows, int64_t row_count, int64_t count);

Place check_place(const l4_place* place);
CheckedMerge check_merge(const l4_matrix* w, const l4_matrix* from, const l4_low_rank* updates, int64_t count,
                         const float* row_factors);
CheckedLowRankUpdate check_low_rank_update(const l4_matrix* y, const l4_matrix* x, const int32_t* rows,
                                           const l4_low_rank* adapters, int64_t count);

}  // namespace lora4j
