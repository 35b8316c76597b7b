// SPDX-License-Identifier: Apache-2.0
#include "core/norm_conv.h"

#include <type_traits>

#include "cpu/ops.h"
#include "cpu/parallel.h"

namespace lsda::cpu {
namespace {

// What stands in for the norm where there is none: padding, and its transpose.
template <class T>
void pad(const NormParams<T>& a, T* images, int threads) {
  using Number = std::conditional_t<sizeof(T) == sizeof(uint32_t), uint32_t, uint64_t>;
  geo_pad<Number>(
      {reinterpret_cast<Number*>(images), reinterpret_cast<const Number*>(a.t), a.members, a.groups * a.width, a.frame},
      threads);
}

template <class T>
void fold(const NormParams<T>& a, int threads) {
  geo_fold<T>({a.out, a.t, a.members, a.groups * a.width, a.frame}, threads);
}

// The convolution of `count` padded images, and its transpose.
template <class T>
ConvParams<T> forward(const NormConvParams<T>& a, int64_t first, int64_t count, const T* padded) {
  const Frame& f = a.norm.frame;
  const int64_t channels = a.norm.groups * a.norm.width, size = f.places() * a.filters;
  return {a.out + first * size,
          padded,
          a.weight,
          a.bias,
          a.add ? a.add + first * size : nullptr,
          count,
          f.rows,
          f.columns,
          channels,
          a.filters,
          2 * f.margin + 1,
          f.padded_rows(),
          0,
          f.padded_columns() * channels,
          core::padded_size(f, channels),
          f.columns * a.filters,
          size,
          nullptr,
          nullptr};
}

template <class T>
ConvParams<T> transposed(const NormConvParams<T>& a, int64_t count, T* padded, const T* read) {
  const Frame& f = a.norm.frame;
  const int64_t channels = a.norm.groups * a.norm.width;
  return {padded + (f.periodic ? f.margin * channels : 0),
          read,
          a.weight,
          nullptr,
          nullptr,
          count,
          f.padded_rows(),
          core::made_columns(f),
          a.filters,
          channels,
          2 * f.margin + 1,
          f.rows + 2 * core::zero_rows(f),
          2 * f.margin - core::zero_rows(f),
          core::read_columns(f) * a.filters,
          core::read_size(f, a.filters),
          f.padded_columns() * channels,
          core::padded_size(f, channels),
          nullptr,
          nullptr};
}

}  // namespace

// As many images together as there are threads: each goes from the norm to the convolution in one thread's cache.
template <class T>
void norm_conv(const NormConvParams<T>& a, Product product, int threads) noexcept {
  const Frame& f = a.norm.frame;
  const bool back = product == Product::vjp;
  const int64_t channels = a.norm.groups * a.norm.width, plain = f.places() * channels;
  const int64_t padded = core::padded_size(f, channels), read = core::read_size(f, a.filters);
  const int64_t together = smaller(threads, a.norm.members);
  T *images = a.scratch, *spread = images + together * padded, *transformed = spread + together * read;
  T* windows = transformed + 16 * channels * a.filters;
  for (int64_t first = 0; first < a.norm.members; first += together) {
    const int64_t count = smaller(together, a.norm.members - first);
    NormParams<T> part = a.norm;
    part.members = part.share = count;
    if (!a.bare) {
      part.x += first * plain;
      part.kept += 2 * first * a.norm.groups;
    }
    ConvParams<T> convolution = back ? transposed(a, count, images, spread) : forward(a, first, count, images);
    convolution.transformed = transformed;
    convolution.windows = windows;
    if (first == 0) conv_weight(convolution, threads);
    if (back) {
      parallel_for(count, threads, [&](int64_t i) {
        core::spread(f, a.filters, spread + i * read, a.u + (first + i) * f.places() * a.filters);
        if (f.periodic) core::clear_sides(f, channels, images + i * padded);
      });
      conv(convolution, threads);
      part.t = images;
      part.out += first * plain;
      part.add = a.add ? a.add + first * plain : nullptr;
      a.bare ? fold(part, threads) : norm(part, product, threads);
    } else {
      part.t += first * plain;
      part.out = images;
      a.bare ? pad(part, images, threads) : norm(part, product, threads);
      conv(convolution, threads);
    }
  }
}

template void norm_conv(const NormConvParams<float>&, Product, int) noexcept;
template void norm_conv(const NormConvParams<double>&, Product, int) noexcept;

}  // namespace lsda::cpu
