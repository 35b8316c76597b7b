// SPDX-License-Identifier: Apache-2.0
// obs_residual: a thread takes one observation through the members, two at a time, with the stencil in registers. As in
// obs_project the stencil is read once rather than once a group of members, and the threads that run at a time gather
// from few members, which stay in the L2 cache.
//
// The cost is float64: the tree of a warp, the warps of a block in order, and in a second launch the blocks of a
// member, thread by thread and then by the same trees. The cut follows from the number of observations alone, and with
// it every bit: the other members have no part in it.
#include "cuda/launch.h"
#include "cuda/sum.h"

namespace lsda::cuda {
namespace {

constexpr int kThreads = kResidualBlock, kWarps = kThreads / 32, kTogether = core::kResidualMembers;

// The sums over a block of `Sums` numbers a thread, sum j in thread j.
template <int Sums>
__device__ double sum_block(const double (&value)[Sums]) {
  __shared__ double warps[Sums][kWarps];
  for (int j = 0; j < Sums; ++j) {
    const double sum = sum_warp(value[j]);
    if (threadIdx.x % 32 == 0) warps[j][threadIdx.x / 32] = sum;
  }
  __syncthreads();
  double total = 0.0;
  if (threadIdx.x < Sums) {
    for (int warp = 0; warp < kWarps; ++warp) total += warps[threadIdx.x][warp];
  }
  __syncthreads();
  return total;
}

template <class T, int K, int kind>
__global__ __launch_bounds__(kThreads, sizeof(T) == 4 && K < 8 ? 3 : 2) void obs_residual_kernel(
    const __grid_constant__ ResidualParams<T> a, int64_t share) {
  const int64_t P = a.project.observations, p = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const int64_t begin = blockIdx.y * share, end = smaller(a.project.members, begin + share);
  const bool here = p < P;
  const core::Stencil<T, K> stencil(a.project, here ? p : 0);
  for (int64_t first = begin; first < end; first += kTogether) {
    double twice[kTogether];
    core::obs_residual_thread<static_cast<Robust>(kind)>(a, stencil, here ? p : 0, first, here ? end - first : 0,
                                                         twice);
    const double sum = sum_block(twice);
    const int64_t m = first + threadIdx.x;
    if (threadIdx.x < kTogether && m < end) a.twice[m * blocks_of(P, kThreads) + blockIdx.x] = sum;
  }
}

template <class T>
__global__ __launch_bounds__(kThreads) void obs_cost_kernel(const double* twice, T* cost, int64_t blocks) {
  double part[1] = {0.0};
  for (int64_t i = threadIdx.x; i < blocks; i += kThreads) part[0] += twice[blockIdx.x * blocks + i];
  const double sum = sum_block(part);
  if (threadIdx.x == 0) cost[blockIdx.x] = static_cast<T>(0.5 * sum);
}

template <class T, int kind>
auto kernel_of_points(int64_t points) {
  switch (points) {
    case 4:
      return obs_residual_kernel<T, 4, kind>;
    case 8:
      return obs_residual_kernel<T, 8, kind>;
    default:
      return obs_residual_kernel<T, 0, kind>;
  }
}

template <class T>
auto kernel_of(Robust kind, int64_t points) {
  switch (kind) {
    case Robust::huber:
      return kernel_of_points<T, static_cast<int>(Robust::huber)>(points);
    case Robust::variational:
      return kernel_of_points<T, static_cast<int>(Robust::variational)>(points);
    default:
      return kernel_of_points<T, static_cast<int>(Robust::gaussian)>(points);
  }
}

}  // namespace

template <class T>
Error obs_residual(const ResidualParams<T>& a, T* cost, Stream stream) noexcept {
  const int64_t M = a.project.members, blocks = blocks_of(a.project.observations, kThreads);
  const int64_t share = members_a_block(blocks, M, kTogether);
  const dim3 grid = grid_of(blocks, blocks_of(M, share));
  const Error error = launch(kernel_of<T>(a.kind, a.project.points), grid, kThreads, 1, stream, a, share);
  return error ? error : launch(obs_cost_kernel<T>, grid_of(M), kThreads, 1, stream, a.twice, cost, blocks);
}

template Error obs_residual(const ResidualParams<float>&, float*, Stream) noexcept;
template Error obs_residual(const ResidualParams<double>&, double*, Stream) noexcept;

}  // namespace lsda::cuda
