/*
 * lora4j.h: low-rank operations on matrices the caller owns.
 *
 * Ownership  Every pointer belongs to the caller and must stay valid until the call returns (CPU) or until the work
 *            queued on the stream is done (CUDA). Nothing is kept after a call, except small per-thread scratch memory.
 * Threads    Every function may be called from any thread. l4_set_threads and l4_last_error are per calling thread;
 *            l4_set_cpu_isa is per process. Two calls must not write the same memory at the same time.
 * Streams    On CUDA a call only queues work on the given stream: it neither allocates nor waits. On the CPU the work
 *            is done when the call returns.
 * Errors     Functions that return int give L4_OK or an error code; l4_last_error() then names the argument and the
 *            rule. All arguments are checked before any matrix is read or written, so a refused call changes nothing.
 * Numbers    float32 arithmetic with round-to-nearest-even, no flushing of subnormals, one rounding to the output's
 *            type, every stored NaN the canonical quiet NaN of the type.
 */
#ifndef LORA4J_H
#define LORA4J_H

#include <stdint.h>

#if defined(__GNUC__)
#define L4_API __attribute__((visibility("default")))
#else
#define L4_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

enum { L4_OK = 0, L4_BAD_ARGUMENT = 1, L4_UNSUPPORTED = 2, L4_FAILED = 3 };
enum { L4_F32 = 0, L4_BF16 = 1, L4_F16 = 2 };
enum { L4_CPU = 0, L4_CUDA = 1 };

/* A matrix: element (i, j) is at data + (i * row_stride + j * col_stride) elements. Sizes and strides are >= 0;
 * data may be null only if the matrix is empty. Every field is 8 bytes, so an array of int64 describes one too. */
typedef struct l4_matrix {
  void* data;
  int64_t rows;
  int64_t cols;
  int64_t row_stride;
  int64_t col_stride;
  int64_t dtype; /* L4_F32, L4_BF16 or L4_F16 */
} l4_matrix;

/* The update scale * b * a, with a (rank, in), b (out, rank), rank >= 1; the factors may differ in type. The scale is
 * rounded to float32 and must be finite there. */
typedef struct l4_low_rank {
  l4_matrix a;
  l4_matrix b;
  double scale;
} l4_low_rank;

/* Where the matrices live and where work is queued. */
typedef struct l4_place {
  int64_t device;  /* L4_CPU or L4_CUDA */
  int64_t ordinal; /* number of the CUDA device; 0 on the CPU */
  void* stream;    /* cudaStream_t, null for the default stream; null on the CPU */
} l4_place;

/* Version of this library, such as "0.1.0". */
L4_API const char* l4_version(void);

/* One line: version, compiled instruction sets, and CUDA architectures or "CUDA not compiled". */
L4_API const char* l4_build_info(void);

/* 1 if the library was compiled for this kind of device (L4_CPU, L4_CUDA), else 0. */
L4_API int l4_has_device(int device);

/* The instruction set the CPU kernels use: "plain", "avx2" or "avx512". Results are the same bits with each. */
L4_API const char* l4_cpu_isa(void);

/* Forces an instruction set; null goes back to the best one here. L4_UNSUPPORTED if this CPU or build lacks it. */
L4_API int l4_set_cpu_isa(const char* name);

/* Threads for CPU calls of the calling thread; 0 (the default) takes OpenMP's count for it. */
L4_API int l4_set_threads(int threads);

/* Message of the last failed call of this thread; empty if none failed. Valid until its next failing call. */
L4_API const char* l4_last_error(void);

/* w = round(w + sum_i scale_i b_i a_i), in place; w (out, in).
 *
 * Per element, with k and i ascending: acc_i = fma(b_i[o,k], a_i[k,j], acc_i) from 0, then w = fma(scale_i, acc_i, w)
 * in float32, and one rounding to w's type: the same bits for every instruction set, thread count and device. No two
 * elements of w may share memory, nor may w and a factor. No update leaves w untouched. On CUDA count <= 32. */
L4_API int l4_merge(const l4_matrix* w, const l4_low_rank* updates, int64_t count, const l4_place* place);

/* y[t] = round(y[t] + scale_a b_a (a_a x[t])) with a = rows[t], in place; y (T, out), x (T, in).
 *
 * rows is host memory of y->rows entries: an index into adapters, or -1 to leave the row untouched. Ranks may differ.
 * a_a x[t] is a float32 sum in a fixed order (16 interleaved chains, then a tree), the second product an fma chain as
 * in l4_merge: a row's bits depend on that row and its adapter only. y may share memory with nothing else, and no two
 * of its elements may. On CUDA rank <= 12288. */
L4_API int l4_low_rank_update(const l4_matrix* y, const l4_matrix* x, const int32_t* rows, const l4_low_rank* adapters,
                              int64_t count, const l4_place* place);

/* How keys and values lie in pages, and what a query sees. Every field is 8 bytes. */
typedef struct l4_paging {
  int64_t heads;       /* query heads */
  int64_t kv_heads;    /* key and value heads; divides heads */
  int64_t page_tokens; /* slots of a page */
  int64_t sequences;   /* rows of the table of pages */
  int64_t table_width; /* columns of it */
  int64_t window;      /* a query sees itself and the window - 1 tokens before it; 0 for all */
  double scale;        /* of the products of queries and keys */
} l4_paging;

/* out[t] = softmax(scale q[t] k) v for each head, over the keys 0 .. positions[t] of sequence sequences[t].
 *
 * out and query (T, heads * d), keys and values (slots, kv_heads * d), all of one type; key j of a sequence lies in slot
 * pages[sequence * table_width + j / page_tokens] * page_tokens + j % page_tokens. sequences, positions (T) and pages are
 * host memory. float32 sums in orders that depend on the number of keys alone: a token's bits depend on its query and the
 * keys and values it sees, not on the batch, the pages or the instruction set. CPU only. */
L4_API int l4_paged_attention(const l4_matrix* out, const l4_matrix* query, const l4_matrix* keys,
                              const l4_matrix* values, const int32_t* sequences, const int32_t* positions,
                              const int32_t* pages, const l4_paging* paging);

#ifdef __cplusplus
}
#endif

#endif
