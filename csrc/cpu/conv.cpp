// SPDX-License-Identifier: Apache-2.0
#include "cpu/contract.h"
//
#include "cpu/ops.h"
#include "cpu/parallel.h"
#include "cpu/product.h"

namespace lsda::cpu {

// A task is an image, or a part of one where there are fewer of them than threads.
template <class T>
void conv(const ConvParams<T>& a, int threads) noexcept {
  const int64_t rows = a.images * a.rows, pieces = a.images < threads ? threads : a.images;
  const int64_t per = blocks_of(rows, pieces < 1 ? 1 : pieces);
  parallel_for(rows ? blocks_of(rows, per) : 0, threads, [&](int64_t task) {
    for (int64_t i = task * per; i < smaller((task + 1) * per, rows); ++i) dispatch::product(core::conv_row(a, i));
  });
}

template void conv(const ConvParams<float>&, int) noexcept;
template void conv(const ConvParams<double>&, int) noexcept;

}  // namespace lsda::cpu
