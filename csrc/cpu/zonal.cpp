// SPDX-License-Identifier: Apache-2.0
#include "cpu/contract.h"
//
#include "core/zonal.h"

#include "cpu/ops.h"
#include "cpu/parallel.h"
#include "cpu/product.h"

namespace lsda {

LSDA_DISPATCH(zonal_coefficients)
LSDA_DISPATCH(zonal_weights)
LSDA_DISPATCH(zonal_scale)

namespace cpu {
namespace {

// in (rows, taps) times the m-th of packed matrices (columns / 16, taps, 16); rows of out and in so far apart.
template <class W, class T>
void dense(T* out, int64_t out_row, const T* in, int64_t in_row, const void* weights, int64_t m, const T* add,
           int64_t rows, int64_t columns, int64_t taps) {
  constexpr int64_t together = kTogetherColumns;
  const W* weight = static_cast<const W*>(weights) + m * columns * taps;
  dispatch::product<T, W>(
      {out, in, weight, nullptr, add, rows, columns, taps, 1, out_row, in_row, 0, 0, together, taps * together});
}

// The members [first, last) of a wavenumber, in place: modes (members, 2, size).
template <class W, class T>
void wave(const ZonalParams<T>& a, T* modes, T* scratch, int64_t m, int64_t first, int64_t last) {
  const int64_t size = a.rows * a.channels, pitch = zonal_pitch(a), count = last - first;
  T *flat = modes + m * zonal_step(a) + first * 2 * pitch, *wide = scratch + (m * a.members + first) * 6 * a.modes;
  T *one = wide + 2 * count * a.modes, *two = one + 2 * count * a.modes;
  const T* nothing = nullptr;
  const auto scale = [&](const T* factor) {
    for (int64_t i = 0; factor && i < 2 * count; ++i) {
      T* to = flat + i * pitch;
      dispatch::zonal_scale(to, factor, size);
    }
  };
  scale(a.before);
  dense<W>(wide, a.modes, flat, pitch, a.right, m, nothing, 2 * count, a.modes, size);
  for (int64_t i = 0; i < count; ++i) {
    T* to = one + i * a.modes;
    const T* from = wide + 2 * i * a.modes;
    dispatch::zonal_coefficients(to, from, a.modes);
  }
  const T* c = one;
  if (a.full) {
    dense<T>(two, a.modes, one, a.modes, a.middle, m, nothing, count, a.modes, a.modes);
    c = two;
  }
  for (int64_t i = 0; i < count; ++i) {
    T* to = wide + 2 * i * a.modes;
    const T *from = c + i * a.modes, *factor = a.full ? nullptr : a.middle + m * a.modes;
    dispatch::zonal_weights(to, from, factor, a.modes);
  }
  scale(a.floor + m * size);
  dense<W>(flat, pitch, wide, a.modes, a.left, m, flat, 2 * count, size, a.modes);
  scale(a.after);
}

}  // namespace

template <class T>
void zonal(const ZonalParams<T>& a, int threads) noexcept {
  const int64_t size = zonal_pitch(a), image = a.columns * a.channels, step = zonal_step(a);
  T *modes = a.scratch, *rest = modes + a.waves * step;
  threads = useful_threads(threads, a.members * a.rows * image);
  parallel_for(a.members * a.rows, threads, [&](int64_t i) {
    const int64_t member = i / a.rows, row = i % a.rows;
    for (int64_t part = 0; part < 2; ++part) {
      dispatch::product<T>({modes + (2 * member + part) * size + row * a.channels,
                            a.analysis + part * a.waves * a.columns, a.x + i * image, nullptr, nullptr, a.waves,
                            a.channels, a.columns, 1, step, a.columns, 0, 0, a.channels, kTogetherColumns});
    }
  });
  const int64_t pieces = smaller(blocks_of(threads, a.waves), a.members),
                per = blocks_of(a.members, pieces < 1 ? 1 : pieces);
  parallel_for(a.members ? a.waves * blocks_of(a.members, per) : 0, threads, [&](int64_t task) {
    const int64_t parts = blocks_of(a.members, per), first = task % parts * per;
    const auto own = a.narrow ? wave<float, T> : wave<T, T>;
    own(a, modes, rest, task / parts, first, smaller(first + per, a.members));
  });
  parallel_for(a.members * a.rows, threads, [&](int64_t i) {
    dispatch::product<T>({a.out + i * image, a.synthesis, modes + i / a.rows * 2 * size + i % a.rows * a.channels,
                          nullptr, nullptr, a.columns, a.channels, a.waves, 2, a.channels, 2 * a.waves, a.waves, size,
                          step, kTogetherColumns});
  });
}

template void zonal(const ZonalParams<float>&, int) noexcept;
template void zonal(const ZonalParams<double>&, int) noexcept;

}  // namespace cpu
}  // namespace lsda
