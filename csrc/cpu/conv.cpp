// SPDX-License-Identifier: Apache-2.0
#include "cpu/contract.h"
//
#include "core/winograd.h"
#include "cpu/ops.h"
#include "cpu/parallel.h"
#include "cpu/product.h"

namespace lsda {

LSDA_DISPATCH(winograd_windows_of)
LSDA_DISPATCH(winograd_weight)
LSDA_DISPATCH(winograd_result)

namespace cpu {
namespace {

// f(task, first, last) on parts of all rows, one an image, or one a thread where there are fewer images.
template <class F>
void row_parts(int64_t images, int64_t rows, int threads, const F& f) {
  const int64_t all = images * rows, pieces = images < threads ? threads : images;
  const int64_t per = blocks_of(all, pieces < 1 ? 1 : pieces);
  parallel_for(all ? blocks_of(all, per) : 0, threads,
               [&](int64_t task) { f(task, task * per, smaller((task + 1) * per, all)); });
}

template <class T>
void winograd(const ConvParams<T>& a, int threads) {
  const int64_t tiles = a.columns / 2, taps = a.channels, pairs = a.rows / 2;
  row_parts(a.images, pairs, threads, [&](int64_t task, int64_t first, int64_t last) {
    T *windows = a.windows + task * winograd_windows(a), *sums = windows + 16 * tiles * taps;
    T* rows = sums + 16 * tiles * a.filters;
    for (int64_t i = first; i < last; ++i) {
      const int64_t place = i / pairs * a.out_image + i % pairs * 2 * a.out_pitch;
      const T* in = a.in + i / pairs * a.in_image + i % pairs * 2 * a.in_pitch;
      T* out = a.out + place;
      const T *add = a.add ? a.add + place : out, *made = sums;
      dispatch::winograd_windows_of(a, windows, rows, in);
      for (int64_t x = 0; x < 16; ++x) {
        dispatch::product<T>({sums + x * tiles * a.filters, windows + x * tiles * taps,
                              a.transformed + x * taps * a.filters, nullptr, nullptr, tiles, a.filters, taps, 1,
                              a.filters, taps, 0, 0, kTogetherColumns, taps * kTogetherColumns});
      }
      dispatch::winograd_result(a, out, add, made);
    }
  });
}

}  // namespace

template <class T>
void conv_weight(const ConvParams<T>& a, int threads) noexcept {
  if (!winograd_takes(a)) return;
  parallel_for(a.filters / kTogetherColumns, threads, [&](int64_t block) {
    T* to = a.transformed;
    dispatch::winograd_weight(a, to, block);
  });
}

template <class T>
void conv(const ConvParams<T>& a, int threads) noexcept {
  if (winograd_takes(a)) return winograd(a, threads);
  row_parts(a.images, a.rows, threads, [&](int64_t, int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) dispatch::product(core::conv_row(a, i));
  });
}

template void conv_weight(const ConvParams<float>&, int) noexcept;
template void conv_weight(const ConvParams<double>&, int) noexcept;
template void conv(const ConvParams<float>&, int) noexcept;
template void conv(const ConvParams<double>&, int) noexcept;

}  // namespace cpu
}  // namespace lsda
