// Elements of a matrix, row by row, to and from float32 buffers.
#pragma once

#include "cpu/elementwise.h"

namespace lora4j {

// Elements [first, first + count) of a matrix in pieces of equal stride: piece(done before it, index, count).
template <typename Piece>
void for_pieces(const Matrix& m, int64_t first, int64_t count, const Piece& piece) {
  bool flat = m.rows == 1 || m.row_stride == m.cols * m.col_stride;
  int64_t done = 0;
  while (done < count) {
    int64_t row = flat ? 0 : (first + done) / m.cols;
    int64_t col = flat ? first + done : (first + done) % m.cols;
    int64_t left = m.cols - col;
    int64_t n = flat || count - done < left ? count - done : left;
    piece(done, row * m.row_stride + col * m.col_stride, n);
    done += n;
  }
}

inline void load_tile(const Elementwise& table, const Matrix& m, int64_t first, int64_t count, float* out) {
  for_pieces(m, first, count, [&](int64_t at, int64_t index, int64_t n) {
    table.widen(m.data, index, m.col_stride, m.type, n, out + at);
  });
}

inline void store_tile(const Elementwise& table, const float* values, int64_t first, int64_t count, const Matrix& m) {
  for_pieces(m, first, count, [&](int64_t at, int64_t index, int64_t n) {
    table.narrow(values + at, n, m.data, index, m.col_stride, m.type);
  });
}

}  // namespace lora4j
