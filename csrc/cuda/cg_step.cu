// SPDX-License-Identifier: Apache-2.0
// cg_step in one launch: a member is one block, or a cluster of up to eight on compute capability 9.0 and above, which
// exchange their sums through each other's shared memory. Triton needs three launches, in each of which all members
// pass through the caches; here a member stays in them from p'Ap to its new p: 7 n numbers to and from memory instead
// of 11 n.
//
// The dot products are float64: thread by thread, then the tree of a warp, the tree of the warps, and the blocks in
// order. The cut follows from n alone, and with it every bit: the other members have no part in it.
#include <cooperative_groups.h>

#include <initializer_list>

#include "cuda/launch.h"
#include "cuda/sum.h"

namespace lsda::cuda {
namespace {

constexpr int kThreads = 512, kWarps = kThreads / 32;

// Elements that are worth a block of their own.
constexpr int64_t kBlockShare = 4096;
constexpr int kMostBlocks = 8;

// Devices later than all of these run the newest as PTX: code for 8.x, say, which knows no clusters, on 9.0.
constexpr bool clusters_are_compiled() {
  for (const int arch : {__CUDA_ARCH_LIST__}) {
    if (arch >= 900) return true;
  }
  return false;
}

// The blocks of a member: a whole cluster, or one block that is no cluster.
struct Blocks {
  int count;

  __device__ int rank() const { return static_cast<int>(blockIdx.x % static_cast<unsigned>(count)); }

  __device__ void arrive() const {
#if __CUDA_ARCH__ >= 900
    if (count > 1) cooperative_groups::this_cluster().barrier_arrive();
#endif
  }

  __device__ void wait() const {
#if __CUDA_ARCH__ >= 900
    if (count > 1) cooperative_groups::this_cluster().barrier_wait();
#endif
  }

  // Memory of another block of the member.
  __device__ const double* of(double* mine, [[maybe_unused]] int other) const {
#if __CUDA_ARCH__ >= 900
    if (count > 1) return cooperative_groups::this_cluster().map_shared_rank(mine, other);
#endif
    return mine;
  }
};

// The sum over all threads of the member, for all of them; `part` is not used again before the kernel's end.
__device__ double sum_member(double value, double* part, const Blocks& blocks) {
  __shared__ double warps[kWarps];
  __shared__ double total;
  value = sum_warp(value);
  if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = value;
  __syncthreads();
  if (threadIdx.x < 32) {
    value = sum_warp(threadIdx.x < kWarps ? warps[threadIdx.x] : 0.0);
    if (threadIdx.x == 0) *part = value;
  }
  blocks.arrive();
  blocks.wait();
  if (threadIdx.x == 0) {
    double sum = 0.0;
    for (int other = 0; other < blocks.count; ++other) sum += *blocks.of(part, other);
    total = sum;
  }
  __syncthreads();
  return total;
}

template <class T>
__global__ __launch_bounds__(kThreads) void cg_step_kernel(const __grid_constant__ CgParams<T> a, Blocks blocks) {
  __shared__ double curvatures, squares;
  const int64_t m = blockIdx.x / static_cast<unsigned>(blocks.count), share = blocks_of(a.size, blocks.count);
  const int64_t first = blocks.rank() * share, last = smaller(a.size, first + share), i = first + threadIdx.x;
  const T rr = a.rr0[m];
  const bool wanted = rr > a.limit[m];
  const T curvature =
      static_cast<T>(sum_member(core::cg_curvature_thread(a, m, i, last, kThreads), &curvatures, blocks));
  // The whole member takes one way: nobody waits for a block that has left.
  if (wanted && curvature > T(0)) {
    const T step = rr / curvature;
    const T rr_new =
        static_cast<T>(sum_member(core::cg_advance_thread(a, m, i, last, kThreads, step), &squares, blocks));
    blocks.arrive();
    core::cg_turn_thread(a, m, i, last, kThreads, rr_new / rr);
    if (blocks.rank() == 0 && threadIdx.x == 0) a.rr[m] = rr_new;
  } else {
    blocks.arrive();
    core::cg_keep_thread(a, m, i, last, kThreads);
    if (blocks.rank() == 0 && threadIdx.x == 0) a.rr[m] = rr;
  }
  // Shared memory stays until all blocks have read it.
  blocks.wait();
}

}  // namespace

template <class T>
Error cg_step(const CgParams<T>& a, Stream stream) noexcept {
  int major = 0;
  const cudaError_t status = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, stream.device);
  if (status != cudaSuccess) return cudaGetErrorString(status);
  Blocks blocks = {1};
  while (clusters_are_compiled() && major >= 9 && blocks.count < kMostBlocks && blocks.count * kBlockShare < a.size)
    blocks.count *= 2;
  return launch(cg_step_kernel<T>, grid_of(a.members * blocks.count), kThreads, blocks.count, stream, a, blocks);
}

template Error cg_step(const CgParams<float>&, Stream) noexcept;
template Error cg_step(const CgParams<double>&, Stream) noexcept;

}  // namespace lsda::cuda
