// How a batch of rows is cut into launches and groups; plain arithmetic, tested on the CPU.
//
// A launch takes up to 512 rows and 192 adapters. Its rows are sorted by adapter, in their order, and each adapter's
// rows are cut into groups of a few, which share every read of the factors. A group belongs to one cluster of blocks
// (one block where there are no clusters), or to several that each take a part of the outputs.
#pragma once

#include "core/params.h"

namespace lora4j {

constexpr int most_batch_rows = 512;
constexpr int most_batch_adapters = 192;
constexpr int most_group_rows = 8;

struct RowGroup {
  uint16_t first;  // of the plan's rows
  uint8_t slot;    // of the plan's adapters
  uint8_t rows;
};

struct BatchPlan {
  int rows = 0;
  int adapters = 0;
  int groups = 0;
  int32_t row[most_batch_rows];
  int32_t adapter[most_batch_adapters];
  RowGroup group[most_batch_rows];
  int rows_of[most_batch_adapters];

  // Takes rows from `first` on until a table is full, sorted by adapter; gives the first row not taken. rows[t] < 0
  // takes no part.
  int64_t take(const int32_t* numbers, int64_t first, int64_t total) {
    constexpr int buckets = 512;  // a power of two, well above the number of adapters
    int16_t bucket[buckets];
    for (int16_t& slot : bucket) slot = -1;
    uint8_t slot_of[most_batch_rows];
    int32_t taken[most_batch_rows];
    rows = adapters = groups = 0;
    int64_t t = first;
    for (; t < total && rows < most_batch_rows; t++) {
      if (numbers[t] < 0) continue;
      int at = numbers[t] % buckets;
      while (bucket[at] >= 0 && adapter[bucket[at]] != numbers[t]) at = (at + 1) % buckets;
      if (bucket[at] < 0) {
        if (adapters == most_batch_adapters) break;
        bucket[at] = static_cast<int16_t>(adapters);
        adapter[adapters] = numbers[t];
        rows_of[adapters++] = 0;
      }
      rows_of[bucket[at]]++;
      slot_of[rows] = static_cast<uint8_t>(bucket[at]);
      taken[rows++] = static_cast<int32_t>(t);
    }
    int place[most_batch_adapters];
    for (int a = 0, start = 0; a < adapters; start += rows_of[a++]) place[a] = start;
    for (int i = 0; i < rows; i++) row[place[slot_of[i]]++] = taken[i];
    return t;
  }

  // Cuts the rows into groups of at most that many, as even as they come.
  void cut(int most) {
    groups = 0;
    for (int a = 0, start = 0; a < adapters; start += rows_of[a++]) {
      int parts = (rows_of[a] + most - 1) / most;
      for (int p = 0; p < parts; p++) {
        int begin = rows_of[a] * p / parts, end = rows_of[a] * (p + 1) / parts;
        group[groups++] = {static_cast<uint16_t>(start + begin), static_cast<uint8_t>(a), static_cast<uint8_t>(end - begin)};
      }
    }
  }
};

constexpr int update_threads = 256;
constexpr int update_pass_ranks = 8;    // products of so many ranks at a time
constexpr int update_stages = 5;        // chunks of the factor and of x in shared memory
constexpr int update_chunk_bytes = 1024;
constexpr int update_chunk_stride = update_chunk_bytes + 32;  // four ranks' pairs of 16-bit numbers in distinct banks
constexpr int64_t most_update_shared = 96 * 1024;

// Who computes which product of a pass: eight lanes to a rank and a row, a warp four ranks of one row. A thread takes
// the row four further as well.
struct ProductOwner {
  static constexpr int rows_apart = 4;
  int rank;
  int row;
  int lane;

  L4_HD static constexpr ProductOwner of(int thread) {
    return {thread / 32 % 2 * 4 + thread % 32 / 8, thread / 64, thread % 8};
  }
};

// What a launch needs for groups of `rows` rows and ranks up to `rank`, over clusters of `cluster` blocks.
struct UpdateShape {
  int rows;        // of a group, at most
  int pass;        // ranks at a time
  int v_stride;    // floats between the products of two rows
  int64_t shared;  // bytes

  static constexpr UpdateShape of(int rows, int64_t rank, int cluster) {
    int64_t each = (rank + cluster - 1) / cluster;
    int pass = each < update_pass_ranks ? static_cast<int>(each) : update_pass_ranks;
    int v_stride = static_cast<int>((rank + 3) / 4 * 4);
    int64_t v = static_cast<int64_t>(rows) * v_stride * 4;
    return {rows, pass, v_stride, v + int64_t{update_stages} * (pass + rows) * update_chunk_stride};
  }

  // Enough groups for the device, then the most rows that share reads, then what fits.
  static constexpr UpdateShape choose(int rows_in_all, int64_t rank, int cluster) {
    int rows = (rows_in_all + 15) / 16;
    rows = rows < 1 ? 1 : rows < most_group_rows ? rows : most_group_rows;
    UpdateShape shape = of(rows, rank, cluster);
    while (shape.shared > most_update_shared && rows > 1) shape = of(--rows, rank, cluster);
    return shape;
  }
};

// Blocks to a group, a multiple of the cluster: enough for the device, and at least one output to a thread.
constexpr int blocks_for_group(int groups, int64_t out, int cluster) {
  int64_t wanted = 264 / (groups * cluster);
  int64_t useful = (out + int64_t{update_threads} * cluster - 1) / (int64_t{update_threads} * cluster);
  int64_t parts = wanted < useful ? wanted : useful;
  parts = parts < 1 ? 1 : parts < 16 ? parts : 16;
  return static_cast<int>(parts) * cluster;
}

}  // namespace lora4j
