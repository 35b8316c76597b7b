// SPDX-License-Identifier: Apache-2.0
// sum_i a_i b_i in float64, in one order for every vector width: 16 lanes side by side, then a tree.
#pragma once

#include "core/base.h"

namespace lsda::core {

template <class T>
LSDA_INLINE double dot(const T* a, const T* b, int64_t n) {
  constexpr int64_t kLanes = 16;
  double lanes[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
#pragma omp simd
    for (int64_t l = 0; l < kLanes; ++l) lanes[l] += static_cast<double>(a[i + l]) * static_cast<double>(b[i + l]);
  }
  for (int64_t l = 0; i + l < n; ++l) lanes[l] += static_cast<double>(a[i + l]) * static_cast<double>(b[i + l]);
  for (int64_t width = kLanes / 2; width > 0; width /= 2) {
    for (int64_t l = 0; l < width; ++l) lanes[l] += lanes[l + width];
  }
  return lanes[0];
}

}  // namespace lsda::core
