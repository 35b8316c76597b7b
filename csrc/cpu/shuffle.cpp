// SPDX-License-Identifier: Apache-2.0
#include "cpu/contract.h"
//
#include "cpu/ops.h"
#include "cpu/parallel.h"
#include "cpu/product.h"

namespace lsda::cpu {

template <class T>
void shuffle(const ShuffleParams<T>& a, int threads) noexcept {
  const int64_t fine = a.patch * a.features, row = a.columns * fine, coarse = a.columns * a.channels;
  const int64_t part = fine * a.channels;
  parallel_for(a.members * a.rows, useful_threads(threads, a.members * a.rows * a.patch * row), [&](int64_t i) {
    T* out = a.out + i * (a.adjoint ? coarse : a.patch * row);
    const T* in = a.in + i * (a.adjoint ? a.patch * row : coarse);
    if (a.adjoint) {
      dispatch::product<T>({out, in, a.weight, nullptr, nullptr, a.columns, a.channels, fine, a.patch, a.channels, fine,
                            row, fine * kTogetherColumns, kTogetherColumns, a.patch * fine * kTogetherColumns});
      return;
    }
    for (int64_t s = 0; s < a.patch; ++s) {
      dispatch::product<T>({out + s * row, in, a.weight + s * part, a.bias ? a.bias + s * fine : nullptr, nullptr,
                            a.columns, fine, a.channels, 1, fine, a.channels, 0, 0, kTogetherColumns,
                            a.channels * kTogetherColumns});
    }
  });
}

template void shuffle(const ShuffleParams<float>&, int) noexcept;
template void shuffle(const ShuffleParams<double>&, int) noexcept;

}  // namespace lsda::cpu
