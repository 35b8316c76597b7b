// SPDX-License-Identifier: Apache-2.0
#include "cpu/dispatch.h"
#include "cpu/ops.h"
#include "cpu/parallel.h"

namespace lsda {

LSDA_DISPATCH(adam_step)

namespace cpu {

template <class T>
void adam_step(const AdamParams<T>& a, int threads) noexcept {
  parallel_for(blocks_of(a.size), useful_threads(threads, a.size),
               [&](int64_t block) { dispatch::adam_step(a, block); });
}

template void adam_step(const AdamParams<float>&, int) noexcept;
template void adam_step(const AdamParams<double>&, int) noexcept;

}  // namespace cpu
}  // namespace lsda
