// SPDX-License-Identifier: Apache-2.0
#include "cpu/dispatch.h"
#include "cpu/ops.h"
#include "cpu/parallel.h"

namespace lsda {

LSDA_DISPATCH(norm_value)
LSDA_DISPATCH(norm_jvp)
LSDA_DISPATCH(norm_vjp)
LSDA_DISPATCH(gated_value)
LSDA_DISPATCH(gated_jvp)
LSDA_DISPATCH(gated_vjp)

namespace cpu {
namespace {

// f(first, last) on parts of [0, count): about a block of elements each, and none reaches over a multiple of `row`.
template <class F>
void shares(int64_t count, int64_t row, int64_t most, int threads, const F& f) {
  const int64_t per = smaller(most, row), pieces = blocks_of(row, per);
  parallel_for(count / row * pieces, threads, [&](int64_t task) {
    const int64_t start = task / pieces * row, first = start + task % pieces * per;
    f(first, smaller(first + per, start + row));
  });
}

constexpr int64_t at_least_one(int64_t n) { return n < 1 ? 1 : n; }

template <class T, class S, class F>
void slices(const NormParams<T, S>& a, int threads, const F& f) {
  const int64_t count = a.members * a.groups, size = a.width * a.frame.places();
  threads = useful_threads(threads, count * size);
  if (a.layout != Layout::last) return shares(count, count, at_least_one(kBlock / size), threads, f);
  // Columns side by side share cache lines: only split where the members do not feed the threads.
  const int64_t pieces = a.members < threads ? blocks_of(threads, a.members) : 1;
  shares(count, a.groups, at_least_one(smaller(kColumns / a.width, a.groups / pieces)), threads, f);
}

}  // namespace

template <class T, class S>
void norm(const NormParams<T, S>& a, Product product, int threads) noexcept {
  if (a.members * a.groups * a.width * a.frame.places() == 0) return;
  slices(a, threads, [&](int64_t first, int64_t last) {
    switch (product) {
      case Product::value:
        return dispatch::norm_value(a, first, last);
      case Product::jvp:
        return dispatch::norm_jvp(a, first, last);
      case Product::vjp:
        return dispatch::norm_vjp(a, first, last);
    }
  });
}

template <class T>
void gated_norm(const GatedParams<T>& a, Product product, int threads) noexcept {
  if (a.rows * a.channels == 0) return;
  threads = useful_threads(threads, a.rows * a.channels);
  shares(a.rows, a.rows, at_least_one(kBlock / a.channels), threads, [&](int64_t first, int64_t last) {
    switch (product) {
      case Product::value:
        return dispatch::gated_value(a, first, last);
      case Product::jvp:
        return dispatch::gated_jvp(a, first, last);
      case Product::vjp:
        return dispatch::gated_vjp(a, first, last);
    }
  });
}

template void norm(const NormParams<float>&, Product, int) noexcept;
template void norm(const NormParams<float, Bfloat16>&, Product, int) noexcept;
template void norm(const NormParams<double>&, Product, int) noexcept;
template void gated_norm(const GatedParams<float>&, Product, int) noexcept;
template void gated_norm(const GatedParams<double>&, Product, int) noexcept;

}  // namespace cpu
}  // namespace lsda
