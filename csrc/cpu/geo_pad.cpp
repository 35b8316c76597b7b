// SPDX-License-Identifier: Apache-2.0
#include "core/geo_pad.h"

#include "cpu/dispatch.h"
#include "cpu/ops.h"
#include "cpu/parallel.h"

namespace lsda {

LSDA_DISPATCH(geo_fold)

namespace cpu {
namespace {

// f(first, last) on parts of all rows of all images: about a block of numbers each.
template <class F>
void row_blocks(int64_t rows, int64_t numbers, int threads, const F& f) {
  if (rows * numbers == 0) return;
  const int64_t most = kBlock / numbers, per = most < 1 ? 1 : most;
  parallel_for(blocks_of(rows, per), useful_threads(threads, rows * numbers),
               [&](int64_t block) { f(block * per, smaller((block + 1) * per, rows)); });
}

}  // namespace

template <class T>
void geo_pad(const PadParams<T>& a, int threads) noexcept {
  row_blocks(a.images * a.frame.padded_rows(), a.frame.columns * a.pixel, threads,
             [&](int64_t first, int64_t last) { core::geo_pad(a, first, last); });
}

template <class T>
void geo_fold(const PadParams<T>& a, int threads) noexcept {
  row_blocks(a.images * a.frame.rows, a.frame.columns * a.pixel, threads,
             [&](int64_t first, int64_t last) { dispatch::geo_fold(a, first, last); });
}

template void geo_pad(const PadParams<uint16_t>&, int) noexcept;
template void geo_pad(const PadParams<uint32_t>&, int) noexcept;
template void geo_pad(const PadParams<uint64_t>&, int) noexcept;
template void geo_fold(const PadParams<float>&, int) noexcept;
template void geo_fold(const PadParams<double>&, int) noexcept;

}  // namespace cpu
}  // namespace lsda
