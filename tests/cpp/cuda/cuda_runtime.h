// SPDX-License-Identifier: Apache-2.0
// As much of CUDA as csrc/cuda uses, on the host: the same sources, launches included, run where there is no GPU.
//
// The threads of a block are coroutines that take turns, so that barriers and shuffles mean what they mean; the blocks
// of a cluster are threads of the system at the same time, all other blocks come one after another. Shared memory is
// thread-local. A barrier that not all threads reach is found, because nobody can go on; races are not.
#pragma once

#include <ucontext.h>

#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <memory>
#include <thread>
#include <vector>

#define __CUDA_ARCH__ 900
#define __global__
#define __device__
#define __grid_constant__
#define __launch_bounds__(...)
#define __shared__ static thread_local

struct dim3 {
  dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
  unsigned x, y, z;
};

using cudaStream_t = void*;
enum cudaError_t { cudaSuccess, cudaErrorInvalidValue };
enum cudaDeviceAttr { cudaDevAttrComputeCapabilityMajor };
enum cudaLaunchAttributeID { cudaLaunchAttributeClusterDimension };
struct cudaLaunchAttribute {
  cudaLaunchAttributeID id;
  struct {
    struct {
      unsigned x, y, z;
    } clusterDim;
  } val;
};
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  cudaStream_t stream;
  cudaLaunchAttribute* attrs;
  unsigned numAttrs;
};

namespace host {

// Major compute capability of the pretended GPU, and the blocks of the last cluster on it.
inline int major = 9;
#define __CUDA_ARCH_LIST__ 800, 900
inline int last_cluster = 0;

struct Cluster {
  int64_t threads = 0;
  std::atomic<int64_t> arrived = 0;
  std::vector<char*> memory;  // of each block
};

inline thread_local char anchor;
inline thread_local dim3 block_index, thread_index;
inline thread_local Cluster* cluster = nullptr;

// A barrier of some threads of one block.
struct Barrier {
  unsigned arrived = 0, round = 0;
};

constexpr size_t kStack = 32768;

class Block {
 public:
  Block(unsigned threads, const std::function<void()>& kernel)
      : kernel_(kernel), fibers_(threads), stacks_(new char[threads * kStack]) {
    self = this;
    for (unsigned i = 0; i < threads; ++i) {
      getcontext(&fibers_[i].context);
      fibers_[i].context.uc_stack = {stacks_.get() + i * kStack, 0, kStack};
      fibers_[i].context.uc_link = &scheduler_;
      makecontext(&fibers_[i].context, &Block::start, 0);
    }
    for (unsigned left = threads, idle = 0; left > 0;) {
      moved_ = false;
      for (current_ = 0; current_ < threads; ++current_) {
        if (fibers_[current_].done) continue;
        thread_index = dim3(current_);
        swapcontext(&scheduler_, &fibers_[current_].context);
        if (fibers_[current_].done) --left;
      }
      idle = moved_ ? 0 : idle + 1;
      if (idle > 3 && cluster->memory.size() > 1) std::this_thread::yield();
      if (idle > (cluster->memory.size() > 1 ? 20000u : 3u)) {
        std::fputs("a barrier that not all threads reach\n", stderr);
        std::_Exit(1);
      }
    }
  }

  template <class F>
  void wait_until(const F& reached) {
    while (!reached()) swapcontext(&fibers_[current_].context, &scheduler_);
    moved_ = true;
  }

  void meet(Barrier& barrier, unsigned threads) {
    moved_ = true;
    const unsigned round = barrier.round;
    if (++barrier.arrived == threads) {
      barrier.arrived = 0;
      ++barrier.round;
    }
    wait_until([&] { return barrier.round != round; });
  }

  template <class T>
  T shuffle_down(unsigned mask, T value, unsigned delta, unsigned width) {
    const unsigned lane = current_ % 32, warp = current_ / 32;
    Barrier& barrier = warps_[warp * 32 + static_cast<unsigned>(__builtin_ctz(mask))];
    const auto many = static_cast<unsigned>(__builtin_popcount(mask));
    slots_[current_] = static_cast<double>(value);
    meet(barrier, many);
    const T other = lane % width + delta < width ? static_cast<T>(slots_[current_ + delta]) : value;
    meet(barrier, many);
    return other;
  }

  void sync() { meet(all_, static_cast<unsigned>(fibers_.size())); }

  static thread_local Block* self;

 private:
  struct Fiber {
    ucontext_t context;
    bool done = false;
  };

  static void start() {
    Block& block = *self;
    block.kernel_();
    block.fibers_[block.current_].done = block.moved_ = true;
  }

  const std::function<void()>& kernel_;
  std::vector<Fiber> fibers_;
  std::unique_ptr<char[]> stacks_;
  ucontext_t scheduler_;
  unsigned current_ = 0;
  bool moved_ = false;
  Barrier all_, warps_[1024];
  double slots_[1024] = {};
};

inline thread_local Block* Block::self = nullptr;

}  // namespace host

#define blockIdx host::block_index
#define threadIdx host::thread_index

inline void __syncthreads() { host::Block::self->sync(); }

template <class T>
T __shfl_down_sync(unsigned mask, T value, int delta, int width = 32) {
  return host::Block::self->shuffle_down(mask, value, static_cast<unsigned>(delta), static_cast<unsigned>(width));
}

inline cudaError_t cudaSetDevice(int) { return cudaSuccess; }
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline const char* cudaGetErrorString(cudaError_t) { return "invalid value"; }
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr, int) {
  *value = host::major;
  return cudaSuccess;
}

template <class... P, class... A>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(P...), A... a) {
  const unsigned together = config->numAttrs ? config->attrs[0].val.clusterDim.x : 1;
  const dim3 grid = config->gridDim;
  if (grid.x == 0 || grid.y == 0 || grid.y > 65535 || grid.x % together != 0 || config->blockDim.x > 1024) {
    return cudaErrorInvalidValue;
  }
  host::last_cluster = static_cast<int>(together);
  for (unsigned y = 0; y < grid.y; ++y) {
    for (unsigned x = 0; x < grid.x; x += together) {
      host::Cluster cluster;
      cluster.threads = together * config->blockDim.x;
      cluster.memory.resize(together);
      std::atomic<unsigned> ready = 0;
      const auto block = [&](unsigned rank) {
        host::cluster = &cluster;
        host::block_index = dim3(x + rank, y);
        cluster.memory[rank] = &host::anchor;
        for (++ready; ready < together;) std::this_thread::yield();
        host::Block(config->blockDim.x, [&] { kernel(a...); });
      };
      if (together == 1) {
        block(0);
        continue;
      }
      std::vector<std::thread> threads;
      for (unsigned rank = 0; rank < together; ++rank) threads.emplace_back(block, rank);
      for (std::thread& thread : threads) thread.join();
    }
  }
  return cudaSuccess;
}
