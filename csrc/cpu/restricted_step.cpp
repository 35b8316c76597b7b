// SPDX-License-Identifier: Apache-2.0
#include "core/restricted_step.h"

#include "cpu/dispatch.h"
#include "cpu/ops.h"
#include "cpu/parallel.h"

namespace lsda {

LSDA_DISPATCH(restricted_member)

namespace cpu {

template <class T>
void restricted_step(const RestrictedParams<T>& a, int threads) noexcept {
  parallel_for(a.members, useful_threads(threads, 6 * a.members * a.size),
               [&](int64_t m) { dispatch::restricted_member(a, m); });
}

template void restricted_step(const RestrictedParams<float>&, int) noexcept;
template void restricted_step(const RestrictedParams<double>&, int) noexcept;

}  // namespace cpu
}  // namespace lsda
