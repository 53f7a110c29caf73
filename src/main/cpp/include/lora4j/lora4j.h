/*
 * lora4j.h: low-rank operations on matrices the caller owns.
 *
 * Ownership  Every pointer belongs to the caller and must stay valid until the call returns (CPU) or until the work
 *            queued on the stream is done (CUDA). Nothing is kept after a call, except small per-thread scratch memory.
 * Threads    Every function may be called from any thread. l4_set_threads and l4_last_error are per calling thread;
 *            l4_set_cpu_isa and l4_set_merge are per process. Two calls must not write the same memory at the same time.
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
enum { L4_F32 = 0, L4_BF16 = 1, L4_F16 = 2, L4_F8_E4M3 = 3 };
enum { L4_CPU = 0, L4_CUDA = 1 };

/* A matrix: element (i, j) is at data + (i * row_stride + j * col_stride) elements. Sizes and strides are >= 0;
 * data may be null only if the matrix is empty. Every field is 8 bytes, so an array of int64 describes one too. */
typedef struct l4_matrix {
  void* data;
  int64_t rows;
  int64_t cols;
  int64_t row_stride;
  int64_t col_stride;
  int64_t dtype; /* L4_F32, L4_BF16 or L4_F16; for what a merge reads and writes also L4_F8_E4M3 */
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

/* How merges compute on CUDA: "exact" (or null; the default), the bits that l4_merge defines, or "fast", on tensor cores:
 * within 2^-15 of scale |b| |a| (float32: 2^-20 for each 16 ranks) before the one rounding, and not finite where the exact
 * one is not. The same bits for the same arguments on one kind of device. The CPU is always exact. L4_BAD_ARGUMENT for other names. */
L4_API int l4_set_merge(const char* mode);

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

/* w = round(f * (from + sum_i scale_i b_i a_i)), as l4_merge gives it, and whether all of it is finite.
 *
 * f multiplies each row by its number in row_factors, w->rows contiguous float32 of the place's memory apart from w, with
 * one rounding to float32 before that to w's type: m / n of DoRA (arXiv:2402.09353). Null for 1; without updates null.
 * from is read only: a matrix of w's shape and type that shares no memory with it, or w itself, or null for w. If a
 * written element is infinite or NaN, *not_finite becomes 1; otherwise it is left as it is, so set it to 0 before. It
 * is memory of the place (on CUDA: of the device, written in the stream's order), 4-byte aligned and apart from w, or
 * null for no check. A separate from keeps the original where the result may be refused, without another pass. */
L4_API int l4_merge_checked(const l4_matrix* w, const l4_matrix* from, const l4_low_rank* updates, int64_t count,
                            const float* row_factors, int32_t* not_finite, const l4_place* place);

/* y[t] = round(y[t] + scale_a b_a (a_a x[t])) with a = rows[t], in place; y (T, out), x (T, in).
 *
 * rows is host memory of y->rows entries: an index into adapters, or -1 to leave the row untouched. Ranks may differ.
 * a_a x[t] is a float32 sum in a fixed order (16 interleaved chains, then a tree), the second product an fma chain as
 * in l4_merge: a row's bits depend on that row and its adapter only. y may share memory with nothing else, and no two
 * of its elements may. On CUDA rank <= 12288. */
L4_API int l4_low_rank_update(const l4_matrix* y, const l4_matrix* x, const int32_t* rows, const l4_low_rank* adapters,
                              int64_t count, const l4_place* place);

/* Which elements of a tensor l4_combine keeps; the others count as zero. */
enum {
  L4_ALL = 0,
  L4_LARGEST = 1, /* the `kept` elements of the largest magnitude, of equal ones those that come first row by row */
  L4_RANDOM = 2   /* each with probability `density`, see l4_task_tensor */
};

/* How l4_combine elects a sign for each element, as TIES merging does (arXiv:2306.01708). */
enum { L4_NO_ELECTION = 0, L4_TOTAL = 1, L4_FREQUENCY = 2 };

/* One tensor of a combination. 13 fields of 8 bytes.
 *
 * L4_RANDOM keeps element i (counted row by row) if word i % 4 of Philox 4x32-10 is below density * 2^32, rounded down;
 * its key is the seed, its counter i / 4 and, in the upper half, the stream: the same elements on every device. */
typedef struct l4_task_tensor {
  l4_matrix x;
  double weight;   /* finite in float32 */
  int64_t pruning; /* L4_ALL, L4_LARGEST or L4_RANDOM */
  int64_t kept;    /* L4_LARGEST: 0 .. rows * cols */
  double density;  /* L4_RANDOM: 0 .. 1 */
  int64_t rescale; /* L4_RANDOM: 1 divides what is kept by the density, 0 does not */
  uint64_t seed;
  uint64_t stream;
} l4_task_tensor;

/* Bytes of device memory that l4_combine needs for y of that shape; 0 on the CPU. Negative for a bad argument. */
L4_API int64_t l4_combine_scratch(int64_t rows, int64_t cols, const l4_place* place);

/* y = the weighted sum of the pruned tensors t_i, or of those that agree with the elected sign, divided by their number.
 *
 * Per element, i ascending, in float32 with a rounding after each step: without election y = sum of weight_i t_i. With
 * one, the sign is that of the sum of t_i (L4_TOTAL) or of the sum of their signs (L4_FREQUENCY), positive if that is 0;
 * y = sum of the weight_i t_i of that sign / max(1, their number). One rounding to y's type: the same bits on every device.
 * NaN counts as larger than any number and stays in the result. y may be one of the tensors, with the same type and
 * strides; else it shares memory with none. Each tensor is read at most twice on the CPU. On CUDA count <= 32. */
L4_API int l4_combine(const l4_matrix* y, const l4_task_tensor* tensors, int64_t count, int64_t election, void* scratch,
                      int64_t scratch_bytes, const l4_place* place);

/* Gradients of one adapter's factors, of their shapes; an empty matrix (all fields 0) asks for none. 12 fields. */
typedef struct l4_low_rank_gradient {
  l4_matrix a;
  l4_matrix b;
} l4_low_rank_gradient;

/* Bytes of device memory that l4_low_rank_backward needs for ranks up to that one; 0 on the CPU. Negative for a
 * bad argument. */
L4_API int64_t l4_low_rank_backward_scratch(int64_t in, int64_t out, int64_t rank, const l4_place* place);

/* The gradients of l4_low_rank_update, added in place: with u[t] = b_a^T dy[t], h[t] = a_a x[t] and a = rows[t],
 * dx[t] += scale_a a_a^T u[t], and for each adapter, over its rows, da += scale sum_t u[t] x[t]^T,
 * db += scale sum_t dy[t] h[t]^T.
 *
 * dx (T, in), or null for none; dy (T, out); x (T, in); h (T, at least the largest rank) holds the products a_a x[t] kept
 * from the forward pass, or is null, and they are computed. rows as in l4_low_rank_update; one gradient an adapter.
 * u and h are sums as those of l4_low_rank_update, dx is its second product. The sums over rows are fma chains over
 * ascending t of 256 rows each, added by fma(scale, chain, .) in float32 and rounded once: bits depend neither on threads
 * nor on device. What is written shares memory with nothing else. */
L4_API int l4_low_rank_backward(const l4_matrix* dx, const l4_matrix* dy, const l4_matrix* x, const l4_matrix* h,
                                const int32_t* rows, const l4_low_rank* adapters, const l4_low_rank_gradient* gradients,
                                int64_t count, void* scratch, int64_t scratch_bytes, const l4_place* place);

/* g[i, j] = x[i] . y[j], doubles row by row; x (m, n), y (k, n), which may be x: a Gram matrix of factors.
 *
 * Per element 8 interleaved chains of sums in double, ascending, then a tree; the products of two float32 are exact. */
L4_API int l4_gram(double* g, const l4_matrix* x, const l4_matrix* y, const l4_place* place);

/* Bytes of device memory that l4_row_norms needs for that rank; 0 on the CPU. Negative for a bad argument. */
L4_API int64_t l4_row_norms_scratch(int64_t rank, const l4_place* place);

/* norms[o] = |w[o] + scale b[o] a|, the norm DoRA divides by (arXiv:2402.09353), without forming the sum; norms (out, 1).
 *
 * In double: the root of |w[o]|^2 + 2 scale b[o] . (a w[o]) + scale^2 b[o] (a a^T) b[o]^T, or 0 if rounding makes that
 * negative, with dot products as in l4_gram and the rest summed over ascending ranks; one rounding to float32, one to
 * the type of norms. w (out, in) may be of any strides. norms shares memory with nothing else. On CUDA rank <= 2048. */
L4_API int l4_row_norms(const l4_matrix* norms, const l4_matrix* w, const l4_low_rank* update, void* scratch,
                        int64_t scratch_bytes, const l4_place* place);

/* A weight (rows, cols) of 4 or 8 bits an element, as bitsandbytes stores it. 12 fields of 8 bytes.
 *
 * 4 bits: packed holds two elements a byte, row by row, the first in the high bits; element e is values[code] times the
 * scale of block e / block_size. 8 bits: packed is int8, and element (i, j) is packed * scales[i] * 0.00787401571869850.
 * If scale_codes is given, the scale of block i is scale_map[scale_codes[i]] * scales[i / scale_block] + offset. All
 * products are float32 and rounded, as are the sums. Pointers are to the place's memory, except values. */
typedef struct l4_quantized {
  const void* packed;
  int64_t bits; /* 4 or 8 */
  int64_t rows;
  int64_t cols;
  const float* values; /* 4 bits: 16 of them, in host memory */
  int64_t block_size;  /* 4 bits: elements that share a scale */
  const float* scales;
  const uint8_t* scale_codes; /* 4 bits: null if the scales are not quantized */
  const float* scale_map;     /* 256 */
  int64_t scale_block;        /* scales that share a scale */
  double offset;
  int64_t reserved; /* 0 */
} l4_quantized;

/* w = rows first_row, first_row + 1, ... of the weight, as many as w has; w (n, cols), one rounding to its type. */
L4_API int l4_dequantize(const l4_matrix* w, const l4_quantized* weight, int64_t first_row, const l4_place* place);

/* Pages of equal size in one buffer: page p begins at data + p * page_size elements. 4 fields of 8 bytes. */
typedef struct l4_pool {
  void* data;
  int64_t pages;
  int64_t page_size; /* elements */
  int64_t dtype;
} l4_pool;

/* Copies matrices into pages of a pool, and back. Their elements, row by row and matrix after matrix, fill the pages in
 * the order of the list, which is host memory and has room for all of them; other elements of the pages stay as they
 * are. Elements keep their bits where types agree, else they are rounded once. Matrices of consecutive pages are
 * contiguous in the pool and need no gathering. What is written shares memory with nothing else, and l4_scatter takes no
 * page twice. */
L4_API int l4_scatter(const l4_pool* pool, const int32_t* pages, int64_t page_count, const l4_matrix* matrices,
                      int64_t count, const l4_place* place);
L4_API int l4_gather(const l4_matrix* matrices, int64_t count, const l4_pool* pool, const int32_t* pages,
                     int64_t page_count, const l4_place* place);

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
