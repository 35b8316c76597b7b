// SPDX-License-Identifier: Apache-2.0
// A convolution of one place and the pixel shuffle behind it, channels last: a place's channels become a patch of
// places of fewer features, a row of the patch at a time.
#pragma once

#include "core/product.h"

namespace lsda {

template <class T>
struct ShuffleParams {
  T* out;
  // (members, rows, columns, channels), of the transpose (members, rows patch, columns patch, features), to the other;
  // the weight is (patch, patch features / 16, channels, 16), of the transpose (channels / 16, patch, patch features,
  // 16).
  const T *in, *weight, *bias;  // bias (patch, patch features), or null
  int64_t members, rows, columns, channels, features, patch;
  bool adjoint;
};

}  // namespace lsda
