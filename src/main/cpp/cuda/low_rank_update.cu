// y[t] += s b (a x[t]) for a batch whose rows use different adapters, y (T, out), x (T, in).
//
// The batched variant (update_plan.h): pointers travel by value in the kernel's parameters. A group of rows of one
// adapter belongs to a cluster of eight blocks. Each computes the products a x[t] of its share of the ranks, from
// chunks that stream through shared memory, and hands them to the others; then each runs over its share of the outputs.
// Before sm_90 every block computes all products. The chains are fixed for each row, so its bits do not depend on the
// batch. The plain variant launches once for each adapter, one block to a row, and takes any strides;
// LORA4J_CUDA_PLAIN=1 in the environment chooses it.
#include <cstdlib>

#include "core/definition.h"
#include "cuda/cuda.h"
#include "cuda/launch.h"
#include "cuda/update_tile.h"

namespace lora4j {
namespace {

constexpr int plain_rows = 512;

struct PlainArgs {
  Matrix y;
  Matrix x;
  LowRank adapter;
  int32_t count;
  int32_t rows[plain_rows];
};
static_assert(sizeof(PlainArgs) <= 4096, "kernel parameters end at 4 KiB");

// The products v[k] = a[k, :] . x[row, :], sixteen lanes to a rank; both halves of a warp run equally often, so that
// all its threads meet in the shuffles.
__global__ void __launch_bounds__(update_threads) update_plain(const __grid_constant__ PlainArgs args) {
  extern __shared__ __align__(16) float v[];
  int64_t row = args.rows[blockIdx.x];
  int rank = static_cast<int>(args.adapter.rank());
  int lane = static_cast<int>(threadIdx.x) % definition_lanes;
  constexpr int groups = update_threads / definition_lanes;
  for (int first = 0; first < rank; first += groups) {
    int k = first + static_cast<int>(threadIdx.x) / definition_lanes;
    float sum = k < rank ? lane_sum(args.adapter.a, k, args.x, row, lane) : 0.0f;
    for (int half = definition_lanes / 2; half > 0; half /= 2) {
      sum += __shfl_down_sync(0xffffffffu, sum, half, definition_lanes);
    }
    if (lane == 0 && k < rank) v[k] = sum;
  }
  __syncthreads();
  for (int64_t col = threadIdx.x; col < args.y.cols; col += update_threads) {
    args.y.set(row, col, updated_element(args.y.at(row, col), args.adapter, v, col));
  }
}

// An adapter whose factors are contiguous along their rows.
struct Slot {
  const void* a;
  const void* b;
  int32_t a_stride;  // elements between rows
  int32_t b_stride;
  int32_t rank;
  float scale;
  DType a_type;
  DType b_type;
};

constexpr int small_rows = 32;
constexpr int small_slots = 16;

// Small batches have tables of their own: parameters are copied with each launch.
template <int most_rows, int most_slots>
struct BatchArgs {
  Matrix y;
  Matrix x;
  UpdateShape shape;
  int32_t blocks;  // to a group
  int32_t row[most_rows];
  RowGroup group[most_rows];
  Slot slots[most_slots];
};
using SmallArgs = BatchArgs<small_rows, small_slots>;
using LargeArgs = BatchArgs<most_batch_rows, most_batch_adapters>;
static_assert(sizeof(SmallArgs) <= 1280 && sizeof(LargeArgs) <= 12 * 1024, "kernel parameters end at 32764 bytes");

__device__ bool aligned_rows(const void* data, int64_t stride, DType type) {
  return reinterpret_cast<uintptr_t>(data) % 16 == 0 && stride * size_of(type) % 16 == 0;
}

// Outputs [begin, end) of a group, n rows at once; rows past the group's repeat its last.
template <DType type, int n>
__device__ __forceinline__ void outputs(const Matrix& y, const int32_t* row, int rows, const Slot& slot, const float* v,
                                        int v_stride, int64_t begin, int64_t end) {
  bool wide = aligned_rows(slot.b, slot.b_stride, slot.b_type);
  for (int64_t col = begin + threadIdx.x; col < end; col += update_threads) {
    float before[n], sum[n] = {};
    const float* products_of[n];
#pragma unroll
    for (int t = 0; t < n; t++) {
      products_of[t] = v + min(t, rows - 1) * v_stride;
      before[t] = y.at(row[min(t, rows - 1)], col);
    }
    const char* b = static_cast<const char*>(slot.b) + col * slot.b_stride * Type<type>::bytes;
    dots<type, n>(b, products_of, slot.rank, wide, sum);
#pragma unroll
    for (int t = 0; t < n; t++) {
      if (t < rows) y.set(row[t], col, fmaf(slot.scale, sum[t], before[t]));
    }
  }
}

template <typename Args>
__global__ void __launch_bounds__(update_threads, 2) update_batch(const __grid_constant__ Args args) {
  extern __shared__ __align__(16) float v[];
  constexpr int cluster = device_cluster;
  cluster_arrive();
  const RowGroup group = args.group[blockIdx.x / static_cast<unsigned>(args.blocks)];
  const int part = static_cast<int>(blockIdx.x) % args.blocks;
  const Slot& slot = args.slots[group.slot];
  const int32_t* row = args.row + group.first;
  const int rows = group.rows;
  const int64_t each_out = (args.y.cols + args.blocks - 1) / args.blocks;
  const int64_t begin = part * each_out;
  const int64_t end = min(begin + each_out, args.y.cols);
  // b is read after the products: have it in the L2 cache by then.
  for (int64_t col = begin + threadIdx.x; col < end; col += update_threads) {
    const int bytes = slot.rank * static_cast<int>(size_of(slot.b_type));
    const char* line = static_cast<const char*>(slot.b) + col * slot.b_stride * size_of(slot.b_type);
    for (int at = 0; at < bytes; at += 128) asm volatile("prefetch.global.L2 [%0];" ::"l"(line + at));
  }

  const int each_rank = (slot.rank + cluster - 1) / cluster;
  const int first_rank = part % cluster * each_rank;
  const int end_rank = min(first_rank + each_rank, slot.rank);
  Pass pass;
  pass.x = {static_cast<const char*>(args.x.data), args.x.row_stride * size_of(args.x.type), args.x.type,
            aligned_rows(args.x.data, args.x.row_stride, args.x.type)};
  pass.row = row;
  pass.rows = rows;
  pass.width = args.x.cols;
  pass.chunk = update_chunk_bytes / (slot.a_type == DType::f32 || args.x.type == DType::f32 ? 4 : 2);
  pass.shared = reinterpret_cast<char*>(v + args.shape.rows * args.shape.v_stride);
  pass.stage_bytes = (args.shape.pass + args.shape.rows) * update_chunk_stride;
  bool all_here = false;  // the cluster's blocks have started, so that their memory may be written
  for (int first = first_rank; first < end_rank; first += args.shape.pass) {
    pass.a = {static_cast<const char*>(slot.a) + static_cast<int64_t>(first) * slot.a_stride * size_of(slot.a_type),
              slot.a_stride * size_of(slot.a_type), slot.a_type, aligned_rows(slot.a, slot.a_stride, slot.a_type)};
    pass.ranks = min(args.shape.pass, end_rank - first);
    float kept[2] = {};
    with_type(slot.a_type, [&](auto a_type) {
      with_type(args.x.type, [&](auto x_type) {
        if (rows <= 4) {
          products<decltype(a_type)::value, decltype(x_type)::value, 1>(pass, kept);
        } else {
          products<decltype(a_type)::value, decltype(x_type)::value, 2>(pass, kept);
        }
      });
    });
    if (!all_here) cluster_wait();
    all_here = true;
    const ProductOwner own = ProductOwner::of(static_cast<int>(threadIdx.x));
#pragma unroll
    for (int i = 0; i < 2; i++) {
      const int in_group = own.row + i * ProductOwner::rows_apart;
      if (own.rank >= pass.ranks || in_group >= rows) continue;
      store_in(v + in_group * args.shape.v_stride + first + own.rank, own.lane, kept[i]);
    }
  }
  if (!all_here) cluster_wait();
  cluster_arrive();
  cluster_wait();

  with_type(slot.b_type, [&](auto type) {
    constexpr DType b_type = decltype(type)::value;
    if (rows == 1) {
      outputs<b_type, 1>(args.y, row, rows, slot, v, args.shape.v_stride, begin, end);
    } else if (rows <= 4) {
      outputs<b_type, 4>(args.y, row, rows, slot, v, args.shape.v_stride, begin, end);
    } else {
      outputs<b_type, 8>(args.y, row, rows, slot, v, args.shape.v_stride, begin, end);
    }
  });
}

int update_plainly(const LowRankUpdateParams& params, cudaStream_t stream) {
  PlainArgs args = {};
  args.y = params.y;
  args.x = params.x;
  for (int64_t a = 0; a < params.count; a++) {
    args.adapter = params.adapters[a];
    args.count = 0;
    for (int64_t t = 0; t < params.y.rows; t++) {
      if (params.rows[t] == a) args.rows[args.count++] = static_cast<int32_t>(t);
      if (args.count == plain_rows || (t == params.y.rows - 1 && args.count > 0)) {
        // Whole groups of four: ptxas reads the last products as a vector, past the rank.
        size_t shared = static_cast<size_t>((args.adapter.rank() + 3) / 4 * 4) * sizeof(float);
        update_plain<<<static_cast<unsigned>(args.count), update_threads, shared, stream>>>(args);
        cudaError_t error = cudaGetLastError();
        if (error) return error;
        args.count = 0;
      }
    }
  }
  return cudaSuccess;
}

bool fits(const Matrix& factor) {
  return (factor.col_stride == 1 || factor.cols <= 1) && factor.row_stride <= INT32_MAX;
}

// Whether the batched kernel takes all arguments as they are.
bool batchable(const LowRankUpdateParams& params) {
  if (params.x.col_stride != 1 && params.x.cols > 1) return false;
  for (int64_t a = 0; a < params.count; a++) {
    if (!fits(params.adapters[a].a) || !fits(params.adapters[a].b)) return false;
  }
  const char* plain = std::getenv("LORA4J_CUDA_PLAIN");
  return !(plain && *plain == '1');
}

// cluster: the blocks that share a group's products, device_cluster of the code that will run.
template <typename Args>
cudaError_t launch(const LowRankUpdateParams& params, BatchPlan& plan, int cluster, cudaStream_t stream) {
  Args args;
  args.y = params.y;
  args.x = params.x;
  int64_t rank = 0;
  for (int s = 0; s < plan.adapters; s++) {
    const LowRank& adapter = params.adapters[plan.adapter[s]];
    args.slots[s] = {adapter.a.data,
                     adapter.b.data,
                     static_cast<int32_t>(adapter.a.row_stride),
                     static_cast<int32_t>(adapter.b.row_stride),
                     static_cast<int32_t>(adapter.rank()),
                     adapter.scale,
                     adapter.a.type,
                     adapter.b.type};
    rank = rank > adapter.rank() ? rank : adapter.rank();
  }
  args.shape = UpdateShape::choose(plan.rows, rank, cluster);
  plan.cut(args.shape.rows);
  for (int i = 0; i < plan.rows; i++) args.row[i] = plan.row[i];
  for (int g = 0; g < plan.groups; g++) args.group[g] = plan.group[g];
  args.blocks = blocks_for_group(plan.groups, params.y.cols, cluster);

  auto kernel = update_batch<Args>;
  if (args.shape.shared > 48 * 1024) {
    cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, most_update_shared);
    if (error) return error;
  }
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(plan.groups * args.blocks));
  config.blockDim = dim3(update_threads);
  config.dynamicSmemBytes = static_cast<size_t>(args.shape.shared);
  config.stream = stream;
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim.x = static_cast<unsigned>(cluster);
  attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
  config.attrs = &attribute;
  config.numAttrs = cluster > 1 ? 1 : 0;
  return cudaLaunchKernelEx(&config, kernel, args);
}

}  // namespace

int low_rank_update_cuda(const LowRankUpdateParams& params, const Place& place) {
  DeviceScope device(place.ordinal);
  if (device.error()) return device.error();
  cudaStream_t stream = static_cast<cudaStream_t>(place.stream);
  if (!batchable(params)) return update_plainly(params, stream);
  int major = 0;
  cudaError_t error = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, place.ordinal);
  int cluster = major >= 9 ? 8 : 1;
  BatchPlan plan;
  for (int64_t t = 0; t < params.y.rows && !error;) {
    t = plan.take(params.rows, t, params.y.rows);
    if (plan.rows == 0) break;
    bool small = plan.rows <= small_rows && plan.adapters <= small_slots;
    error = small ? launch<SmallArgs>(params, plan, cluster, stream) : launch<LargeArgs>(params, plan, cluster, stream);
  }
  return error;
}

}  // namespace lora4j
