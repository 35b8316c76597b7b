// SPDX-License-Identifier: Apache-2.0
#include <memory>

#include "cpu/dispatch.h"
#include "cpu/ops.h"
#include "cpu/parallel.h"

namespace lsda {

LSDA_DISPATCH(head_project)
LSDA_DISPATCH(head_adjoint)

namespace cpu {
namespace {

// piece(scratch, i, first, last) for every piece and group of members, `size` elements of scratch a member.
template <class T, class F>
void pieces_and_members(const HeadParams<T>& a, int64_t pieces, int64_t size, int threads, const F& piece) {
  threads = useful_threads(threads, a.members * (a.values * a.taps * a.features + a.places));
  const int64_t together = members_together(pieces, a.members, threads), groups = blocks_of(a.members, together);
  parallel_for(pieces * groups, threads, [&](int64_t task) {
    const std::unique_ptr<T[]> scratch(new T[static_cast<size_t>(together * size)]);
    const int64_t first = task % groups * together;
    piece(scratch.get(), task / groups, first, smaller(a.members, first + together));
  });
}

}  // namespace

template <class T>
void head_project(const HeadParams<T>& a, const T* x, T* y, int threads) noexcept {
  pieces_and_members(a, a.sites, a.taps * a.features, threads, [&](T* scratch, int64_t q, int64_t first, int64_t last) {
    dispatch::head_project(a, x, y, scratch, q, first, last);
  });
}

template <class T>
void head_adjoint(const HeadParams<T>& a, const T* y, T* x, int threads) noexcept {
  pieces_and_members(a, blocks_of(a.places, kPlaceBlock), a.features, threads,
                     [&](T* scratch, int64_t block, int64_t first, int64_t last) {
                       dispatch::head_adjoint(a, y, x, scratch, block, first, last);
                     });
}

template void head_project(const HeadParams<float>&, const float*, float*, int) noexcept;
template void head_project(const HeadParams<double>&, const double*, double*, int) noexcept;
template void head_adjoint(const HeadParams<float>&, const float*, float*, int) noexcept;
template void head_adjoint(const HeadParams<double>&, const double*, double*, int) noexcept;

}  // namespace cpu
}  // namespace lsda
