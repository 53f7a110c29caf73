// Copies between matrices and pages of a pool, a thread to an element. A launch takes one matrix and up to 512 pages,
// whose numbers travel by value.
#include "core/pages.h"
#include "cuda/cuda.h"
#include "cuda/launch.h"

namespace lora4j {
namespace {

constexpr int block_threads = 256;
constexpr int64_t most_blocks = 1 << 16;
constexpr int64_t most_pages = 512;

struct CopyArgs {
  Pool pool;
  Matrix matrix;
  int64_t first;  // elements [first, end) of the matrix
  int64_t end;
  int64_t at;  // where its element 0 is, from the first of these pages on
  int32_t into_pool;
  int32_t pages[most_pages];
};
static_assert(sizeof(CopyArgs) <= 4096, "kernel parameters end at 4 KiB");

__global__ void __launch_bounds__(block_threads) copy_pages(const __grid_constant__ CopyArgs args) {
  const Matrix& m = args.matrix;
  int64_t step = static_cast<int64_t>(gridDim.x) * block_threads;
  for (int64_t i = args.first + static_cast<int64_t>(blockIdx.x) * block_threads + threadIdx.x; i < args.end; i += step) {
    int64_t in_pool = pool_index(args.pool.page_size, args.pages, args.at + i);
    int64_t index = i / m.cols * m.row_stride + i % m.cols * m.col_stride;
    if (args.into_pool) {
      copy_element(m.data, index, m.type, args.pool.data, in_pool, args.pool.type);
    } else {
      copy_element(args.pool.data, in_pool, args.pool.type, m.data, index, m.type);
    }
  }
}

}  // namespace

int copy_pages_cuda(const PagesParams& params, const Place& place) {
  DeviceScope device(place.ordinal);
  if (device.error()) return device.error();
  int64_t size = params.pool.page_size;
  int64_t start = 0;  // of the matrix, in elements of the list of pages
  for (int64_t m = 0; m < params.count; m++) {
    int64_t elements = params.matrices[m].rows * params.matrices[m].cols;
    for (int64_t done = 0; done < elements;) {
      int64_t page = (start + done) / size;
      int64_t room = (page + most_pages) * size - (start + done);
      CopyArgs args = {params.pool, params.matrices[m], done, elements - done < room ? elements : done + room,
                       start - page * size, params.into_pool, {}};
      int64_t pages = (start + args.end - 1) / size - page + 1;
      for (int64_t p = 0; p < pages; p++) args.pages[p] = params.pages[page + p];
      int64_t blocks = (args.end - args.first + block_threads - 1) / block_threads;
      copy_pages<<<static_cast<unsigned>(blocks < most_blocks ? blocks : most_blocks), block_threads, 0,
                   static_cast<cudaStream_t>(place.stream)>>>(args);
      cudaError_t error = cudaGetLastError();
      if (error) return error;
      done = args.end;
    }
    start += elements;
  }
  return cudaSuccess;
}

}  // namespace lora4j
