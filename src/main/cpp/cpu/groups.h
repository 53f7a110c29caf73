// Rows of a batch grouped by their adapter.
#pragma once

#include <cstdint>
#include <vector>

namespace lora4j {

struct RowGroup {
  int64_t adapter;
  int64_t row;  // first entry in the sorted row numbers
  int64_t row_count;
};

struct RowGroups {
  std::vector<RowGroup> groups;  // those that have rows
  std::vector<int32_t> rows;     // sorted by adapter, stable; rows without one are left out
};

inline RowGroups group_rows(const int32_t* rows, int64_t row_count, int64_t adapters) {
  RowGroups grouped;
  std::vector<int64_t> next(static_cast<size_t>(adapters), 0);
  for (int64_t t = 0; t < row_count; t++) {
    if (rows[t] >= 0) next[static_cast<size_t>(rows[t])]++;
  }
  int64_t start = 0;
  for (int64_t a = 0; a < adapters; a++) {
    int64_t size = next[static_cast<size_t>(a)];
    if (size > 0) grouped.groups.push_back({a, start, size});
    next[static_cast<size_t>(a)] = start;
    start += size;
  }
  grouped.rows.resize(static_cast<size_t>(start));
  for (int64_t t = 0; t < row_count; t++) {
    if (rows[t] >= 0) grouped.rows[static_cast<size_t>(next[static_cast<size_t>(rows[t])]++)] = static_cast<int32_t>(t);
  }
  return grouped;
}

}  // namespace lora4j
