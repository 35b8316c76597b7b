// SPDX-License-Identifier: Apache-2.0
// Sums over threads as trees, which are the same every time.
#pragma once

#include <cuda_runtime.h>

namespace lsda::cuda {

// Over a warp, in its first thread.
__device__ inline double sum_warp(double value) {
  for (int width = 16; width > 0; width /= 2) value += __shfl_down_sync(0xffffffffu, value, width);
  return value;
}

}  // namespace lsda::cuda
