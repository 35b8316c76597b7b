// SPDX-License-Identifier: Apache-2.0
// What every algorithm shares. The algorithms are inlined into one caller per instruction set (cpu/dispatch.h), so that
// each is compiled for that set; they hold no state, allocate nothing and throw nothing. What one thread of a CUDA
// kernel does is LSDA_HOST_DEVICE, so that it is checked on the host too.
#pragma once

#include <cstdint>

#define LSDA_INLINED __attribute__((always_inline))
#define LSDA_INLINE inline LSDA_INLINED

#ifdef __CUDACC__
#define LSDA_HOST_DEVICE __host__ __device__
#else
#define LSDA_HOST_DEVICE
#endif

namespace lsda {

// Raised whenever a signature in bind/ changes: Python leaves a module of another number alone.
constexpr int kAbi = 12;

// Elements of one member that are worked on, and summed, together. Part of the result: sums go block by block.
constexpr int64_t kBlock = 4096;

LSDA_HOST_DEVICE constexpr int64_t blocks_of(int64_t size, int64_t block = kBlock) {
  return (size + block - 1) / block;
}

LSDA_HOST_DEVICE constexpr int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

}  // namespace lsda
