// SPDX-License-Identifier: Apache-2.0
// A launch that has to succeed, and outputs that have to be the same.
#pragma once

#include <cstring>

#include "checks.h"
#include "cuda/ops.h"
#include "cuda_runtime.h"

inline const lsda::cuda::Stream kStream = {0, nullptr};

inline void launched(lsda::cuda::Error error) { expect(error == nullptr, error ? error : ""); }

template <class T>
bool same(Block<T>& a, Block<T>& b) {
  return a.size == b.size && std::memcmp(a.get(), b.get(), static_cast<size_t>(a.size) * sizeof(T)) == 0;
}
