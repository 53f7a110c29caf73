// y = the combination of the pruned tensors. For each tensor whose largest elements are kept, five small launches find
// the exact cut: keys by their upper 16 bits, the bin of the cut, keys of that bin by their lower 15, the key of the cut,
// and among the elements equal to it, if some of them are dropped, the number of the first one dropped. Then one launch
// combines, a thread to an element. Nothing is read back, so a call can be captured.
#include "core/combine.h"
#include "cuda/cuda.h"
#include "cuda/launch.h"

namespace lora4j {
namespace {

constexpr int block_threads = 256;
constexpr int64_t most_blocks = 1 << 14;
constexpr int64_t chunk = 4096;  // elements whose equal keys are counted together

// In scratch memory, for the tensor at hand.
struct Search {
  Bin high;
  uint32_t key;
  int32_t ambiguous;  // some, not all, elements equal to the key are kept
  int64_t wanted;     // of those
  int64_t end;        // elements before it are kept
};

struct Scratch {
  Cut* cuts;        // (most_cuda_tensors)
  Search* search;   // (1)
  uint32_t* high;   // (high_bins)
  uint32_t* low;    // (low_bins)
  uint32_t* equal;  // (chunks)
};

__host__ __device__ int64_t chunks_of(int64_t elements) { return (elements + chunk - 1) / chunk; }

constexpr int64_t cuts_bytes = most_cuda_tensors * static_cast<int64_t>(sizeof(Cut));
constexpr int64_t search_bytes = 64;
constexpr int64_t bins_bytes = (high_bins + low_bins) * 4;
static_assert(sizeof(Search) <= search_bytes, "room for the search");

Scratch scratch_at(void* memory) {
  char* at = static_cast<char*>(memory);
  Scratch scratch;
  scratch.cuts = reinterpret_cast<Cut*>(at);
  scratch.search = reinterpret_cast<Search*>(at + cuts_bytes);
  scratch.high = reinterpret_cast<uint32_t*>(at + cuts_bytes + search_bytes);
  scratch.low = scratch.high + high_bins;
  scratch.equal = scratch.low + low_bins;
  return scratch;
}

__device__ float element(const Matrix& x, int64_t index) { return x.at(index / x.cols, index % x.cols); }

__global__ void __launch_bounds__(block_threads) count_high(const Matrix x, uint32_t* bins) {
  int64_t step = static_cast<int64_t>(gridDim.x) * block_threads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * block_threads + threadIdx.x; i < x.rows * x.cols; i += step) {
    atomicAdd(bins + (magnitude_key(element(x, i)) >> low_bits), 1u);
  }
}

__global__ void __launch_bounds__(block_threads) count_low(const Matrix x, const Search* search, uint32_t* bins) {
  int64_t step = static_cast<int64_t>(gridDim.x) * block_threads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * block_threads + threadIdx.x; i < x.rows * x.cols; i += step) {
    uint32_t key = magnitude_key(element(x, i));
    if (key >> low_bits == search->high.bin) atomicAdd(bins + (key & (low_bins - 1)), 1u);
  }
}

// find_bin by one block: each thread sums a part of the bins, one thread finds the part and the bin in it.
__device__ Bin find_bin_together(const uint32_t* bins, int64_t count, int64_t wanted) {
  __shared__ int64_t parts[block_threads];
  int64_t each = count / block_threads;
  int64_t sum = 0;
  for (int64_t b = 0; b < each; b++) sum += bins[threadIdx.x * each + b];
  parts[threadIdx.x] = sum;
  __syncthreads();
  Bin part = find_bin(parts, block_threads, wanted);
  Bin found = find_bin(bins + part.bin * each, each, part.wanted);
  __syncthreads();
  return {part.bin * each + found.bin, found.wanted};
}

__global__ void __launch_bounds__(block_threads) find_high(Scratch scratch, int64_t kept) {
  Bin found = find_bin_together(scratch.high, high_bins, kept);
  if (threadIdx.x == 0) scratch.search->high = found;
}

__global__ void __launch_bounds__(block_threads) find_low(Scratch scratch, Cut* cut, int64_t elements) {
  Bin high = scratch.search->high;
  Bin found = find_bin_together(scratch.low, low_bins, high.wanted);
  if (threadIdx.x == 0) {
    Search& search = *scratch.search;
    search.key = static_cast<uint32_t>(high.bin << low_bits | found.bin);
    search.wanted = found.wanted;
    search.ambiguous = found.wanted < static_cast<int64_t>(scratch.low[found.bin]);
    *cut = {search.key, elements};
  }
}

// Equal keys of each chunk, if some have to be dropped.
__global__ void __launch_bounds__(block_threads) count_equal(const Matrix x, Scratch scratch) {
  if (!scratch.search->ambiguous) return;
  uint32_t key = scratch.search->key;
  int64_t elements = x.rows * x.cols;
  for (int64_t c = blockIdx.x; c < chunks_of(elements); c += gridDim.x) {
    int64_t end = (c + 1) * chunk < elements ? (c + 1) * chunk : elements;
    for (int64_t first = c * chunk; first < end; first += block_threads) {
      int64_t i = first + threadIdx.x;
      int equal = __syncthreads_count(i < end && magnitude_key(element(x, i)) == key);
      if (threadIdx.x == 0) scratch.equal[c] = (first == c * chunk ? 0u : scratch.equal[c]) + static_cast<uint32_t>(equal);
    }
  }
}

__global__ void find_end(const Matrix x, Scratch scratch, Cut* cut) {
  if (!scratch.search->ambiguous) return;
  uint32_t key = scratch.search->key;
  cut->index = first_dropped(scratch.equal, chunk, scratch.search->wanted,
                             [&](int64_t i) { return magnitude_key(element(x, i)) == key; });
}

__global__ void set_cut(Cut* cut, Cut value) { *cut = value; }

struct CombineArgs {
  Matrix y;
  int64_t count;
  Election election;
  const Cut* cuts;
  TaskTensor tensors[most_cuda_tensors];
};
static_assert(sizeof(CombineArgs) <= 4096, "kernel parameters end at 4 KiB");

__global__ void __launch_bounds__(block_threads) combine_elements(const __grid_constant__ CombineArgs args) {
  int64_t step = static_cast<int64_t>(gridDim.x) * block_threads;
  int64_t elements = args.y.rows * args.y.cols;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * block_threads + threadIdx.x; i < elements; i += step) {
    int64_t row = i / args.y.cols;
    int64_t col = i % args.y.cols;
    float value = combined_element(args.tensors, args.count, args.election, [&](int64_t t) {
      const TaskTensor& tensor = args.tensors[t];
      return pruned_element(tensor, args.cuts[t], tensor.x.at(row, col), i);
    });
    args.y.set(row, col, value);
  }
}

cudaError_t find_cut(const TaskTensor& tensor, const Scratch& scratch, Cut* cut, cudaStream_t stream) {
  int64_t elements = tensor.x.rows * tensor.x.cols;
  if (tensor.kept == 0 || tensor.kept == elements) {
    set_cut<<<1, 1, 0, stream>>>(cut, {tensor.kept == 0 ? every_key : 0u, elements});
    return cudaGetLastError();
  }
  cudaError_t error = cudaMemsetAsync(scratch.high, 0, bins_bytes, stream);
  if (error) return error;
  int64_t blocks = (elements + block_threads - 1) / block_threads;
  auto grid = static_cast<unsigned>(blocks < most_blocks ? blocks : most_blocks);
  count_high<<<grid, block_threads, 0, stream>>>(tensor.x, scratch.high);
  find_high<<<1, block_threads, 0, stream>>>(scratch, tensor.kept);
  count_low<<<grid, block_threads, 0, stream>>>(tensor.x, scratch.search, scratch.low);
  find_low<<<1, block_threads, 0, stream>>>(scratch, cut, elements);
  int64_t chunks = chunks_of(elements);
  auto chunk_grid = static_cast<unsigned>(chunks < most_blocks ? chunks : most_blocks);
  count_equal<<<chunk_grid, block_threads, 0, stream>>>(tensor.x, scratch);
  find_end<<<1, 1, 0, stream>>>(tensor.x, scratch, cut);
  return cudaGetLastError();
}

}  // namespace

int64_t combine_cuda_scratch(int64_t rows, int64_t cols) {
  return cuts_bytes + search_bytes + bins_bytes + (chunks_of(rows * cols) * 4 + 15) / 16 * 16;
}

int combine_cuda(const CombineParams& params, void* memory, const Place& place) {
  DeviceScope device(place.ordinal);
  if (device.error()) return device.error();
  cudaStream_t stream = static_cast<cudaStream_t>(place.stream);
  Scratch scratch = scratch_at(memory);
  CombineArgs args = {};
  args.y = params.y;
  args.count = params.count;
  args.election = params.election;
  args.cuts = scratch.cuts;
  for (int64_t t = 0; t < params.count; t++) {
    args.tensors[t] = params.tensors[t];
    if (params.tensors[t].pruning != Pruning::largest) continue;
    cudaError_t error = find_cut(params.tensors[t], scratch, scratch.cuts + t, stream);
    if (error) return error;
  }
  int64_t blocks = (params.y.rows * params.y.cols + block_threads - 1) / block_threads;
  combine_elements<<<static_cast<unsigned>(blocks < most_blocks ? blocks : most_blocks), block_threads, 0, stream>>>(args);
  return cudaGetLastError();
}

}  // namespace lora4j
