// SPDX-License-Identifier: Apache-2.0
// core::product with the tiles of each instruction set, for files that begin with cpu/contract.h.
#pragma once

#include "core/product.h"
#include "cpu/dispatch.h"

namespace lsda::dispatch {

// Rows of a tile are fewer for double.
template <class T>
constexpr int kHalf = sizeof(T) / sizeof(float);

template <class T, class W>
[[maybe_unused]] static void product_baseline(const ProductParams<T, W>& p) {
  core::product<1, 2 / kHalf<T>>(p);
}

template <class T, class W>
[[maybe_unused]] LSDA_TARGET_V3 static void product_v3(const ProductParams<T, W>& p) {
  core::product<1, 6 / kHalf<T>>(p);
}

template <class T, class W>
[[maybe_unused]] LSDA_TARGET_V4 static void product_v4(const ProductParams<T, W>& p) {
  core::product<2, 8 / kHalf<T>>(p);
}

template <class T, class W = T>
static void product(const ProductParams<T, W>& p) {
  LSDA_CHOOSE(product, p);
}

}  // namespace lsda::dispatch
