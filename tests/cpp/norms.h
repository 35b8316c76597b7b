// SPDX-License-Identifier: Apache-2.0
// The normalisations against plain loops, and their two products against each other.
#pragma once

#include "checks.h"
#include "cpu/ops.h"

// Mean and 1 / sqrt(variance + eps) of f over a group, by plain sums.
template <class F>
void moments(int64_t width, int64_t places, const F& f, double& mean, double& scale) {
  double sum = 0, squares = 0;
  const double n = static_cast<double>(width * places);
  for (int64_t i = 0; i < width * places; ++i) sum += f(i / places, i % places);
  mean = sum / n;
  for (int64_t i = 0; i < width * places; ++i) {
    const double d = f(i / places, i % places) - mean;
    squares += d * d;
  }
  scale = 1.0 / std::sqrt(squares / n + 1e-5);
}

// Of numbers that are kept as S.
template <class T, class S = T>
void normalisation(lsda::Layout layout, int64_t rows, int64_t share, int64_t groups, int64_t width, lsda::Frame frame,
                   bool silu, int threads) {
  const int64_t channels = groups * width, places = frame.places(), affine = rows / share * channels;
  const int64_t size = rows * channels * places, padded = frame.padded_rows() * frame.padded_columns();
  auto x = random<S>(size), t = random<S>(size), u = random<S>(rows * channels * padded);
  auto a = random<T>(affine), b = random<T>(affine);
  Block<S> y(rows * channels * padded), jvp(rows * channels * padded), vjp(size);
  Block<T> kept(2 * rows * groups);
  const auto run = [&](S* out, const S* of, lsda::Product product) {
    lsda::cpu::norm<T, S>(
        {out, kept.get(), of, x.get(), a.get(), b.get(), rows, share, groups, width, frame, 1e-5, layout, silu},
        product, threads);
  };
  run(y.get(), t.get(), lsda::Product::value);
  run(jvp.get(), t.get(), lsda::Product::jvp);
  run(vjp.get(), u.get(), lsda::Product::vjp);
  double forward = 0, back = 0, sum = 0, mean, scale;
  for (int64_t slice = 0; slice < rows * groups; ++slice) {
    const int64_t row = slice / groups, first = slice % groups * width;
    const auto at = [&](int64_t c, int64_t s, int64_t all) {
      const int64_t channel = first + c;
      return row * channels * all + (layout == lsda::Layout::planes ? channel * all + s : s * channels + channel);
    };
    const auto inside = [&](int64_t s) {
      return (s / frame.columns + frame.margin) * frame.padded_columns() + s % frame.columns + frame.margin;
    };
    moments(width, places, [&](int64_t c, int64_t s) { return static_cast<double>(x[at(c, s, places)]); }, mean, scale);
    expect(close(kept[2 * slice], mean, 8.0) && close(kept[2 * slice + 1], scale, 8.0 + scale), "what norm keeps");
    for (int64_t i = 0; i < width * places; ++i) {
      const int64_t c = i / places, s = i % places, channel = row / share * channels + first + c;
      const double p = (static_cast<double>(x[at(c, s, places)]) - mean) * scale * a[channel] + b[channel];
      expect(close(y[at(c, inside(s), padded)], silu ? p / (1 + std::exp(-p)) : p, 8.0), "norm");
      back += static_cast<double>(t[at(c, s, places)]) * vjp[at(c, s, places)];
    }
    for (int64_t i = 0; i < width * padded; ++i) {
      const int64_t place = at(i / padded, i % padded, padded);
      const double product = static_cast<double>(u[place]) * jvp[place];
      forward += product;
      sum += std::abs(product);
    }
  }
  // Both products: P D and D P are each other's transpose, and so are padding and folding.
  expect(within<S>(forward, back, sum), "the products of norm");
}

template <class T>
void stream(int64_t rows, int64_t share, int64_t channels, bool gated, int threads) {
  const int64_t size = rows * channels, affine = rows / share * channels;
  auto x = random<T>(size), branch = random<T>(size), gate = random<T>(affine), a = random<T>(affine),
       b = random<T>(affine);
  Block<T> y(size), n(size), dx(size), dbranch(size), vy(size), vn(size);
  lsda::GatedParams<T> p = {};
  p.left = x.get();
  p.right = branch.get();
  p.gate = gated ? gate.get() : nullptr;
  p.a = a.get();
  p.rows = rows;
  p.share = share;
  p.channels = channels;
  p.eps = 1e-5;
  p.b = b.get();
  p.first = y.get();
  p.second = n.get();
  lsda::cpu::gated_norm(p, lsda::Product::value, threads);
  p.b = nullptr;
  p.y = y.get();
  p.first = vy.get();
  p.second = vn.get();
  lsda::cpu::gated_norm(p, lsda::Product::jvp, threads);
  p.first = dx.get();
  p.second = dbranch.get();
  lsda::cpu::gated_norm(p, lsda::Product::vjp, threads);
  double forward = 0, back = 0, sum = 0, mean, scale;
  for (int64_t row = 0; row < rows; ++row) {
    moments(channels, 1, [&](int64_t c, int64_t) { return static_cast<double>(y[row * channels + c]); }, mean, scale);
    for (int64_t c = 0; c < channels; ++c) {
      const int64_t i = row * channels + c, k = row / share * channels + c;
      const double left = x[i], right = branch[i];
      expect(close(y[i], left + (gated ? static_cast<double>(gate[k]) : 1.0) * right, 8.0), "the residual");
      expect(close(n[i], (static_cast<double>(y[i]) - mean) * scale * a[k] + b[k], 8.0), "the stream's norm");
      forward += left * vy[i] + right * vn[i];
      sum += std::abs(left * vy[i]) + std::abs(right * vn[i]);
      back += left * dx[i] + right * dbranch[i];
    }
  }
  expect(within<T>(forward, back, sum), "the products of the stream");
}

template <class T>
void normalisations(int threads) {
  using lsda::Layout;
  const auto line = [](int64_t places) { return lsda::Frame{1, places, 0, false, false, false, false}; };
  const lsda::Frame globe = {7, 10, 2, true, true, true, false}, region = {5, 9, 1, false, false, true, false};
  for (bool flag : {false, true}) {
    normalisation<T>(Layout::tokens, 300, 100, 1, 37, line(1), flag, threads);
    normalisation<T>(Layout::tokens, 3, 1, 1, 5000, line(1), flag, threads);
    normalisation<T>(Layout::tokens, 0, 1, 1, 37, line(1), flag, threads);
    normalisation<T>(Layout::planes, 4, 4, 3, 5, line(301), flag, threads);
    normalisation<T>(Layout::planes, 2, 1, 2, 1, line(9001), flag, threads);
    normalisation<T>(Layout::last, 2, 2, 3, 5, line(301), flag, threads);
    normalisation<T>(Layout::last, 1, 1, 7, 100, line(11), flag, threads);
    normalisation<T>(Layout::last, 3, 1, 2, lsda::kColumns, line(3), flag, threads);
    for (const lsda::Frame& frame : {globe, region}) {
      normalisation<T>(Layout::planes, 2, 1, 2, 5, frame, flag, threads);
      normalisation<T>(Layout::last, 3, 3, 4, 6, frame, flag, threads);
      normalisation<T>(Layout::last, 1, 1, 3, 300, frame, flag, threads);
      normalisation<float, lsda::Bfloat16>(Layout::planes, 2, 1, 2, 5, frame, flag, threads);
      normalisation<float, lsda::Bfloat16>(Layout::last, 3, 3, 4, 6, frame, flag, threads);
    }
    stream<T>(300, 100, 37, flag, threads);
    stream<T>(3, 1, 5000, flag, threads);
    stream<T>(0, 1, 8, flag, threads);
  }
}
