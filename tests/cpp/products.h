// SPDX-License-Identifier: Apache-2.0
// Matrix products and what is made of them: against plain loops, and their two products against each other.
#pragma once

#include "checks.h"
#include "cpu/ops.h"

// W (filters, size, size, channels), from one to the next filter and channel, as the operations take it.
template <class T>
Block<T> packed(const Block<T>& weight, int64_t filters, int64_t channels, int64_t taps, bool turned) {
  constexpr int64_t together = lsda::kTogetherColumns;
  const int64_t outer = turned ? channels : filters, inner = turned ? filters : channels;
  Block<T> w(weight.size);
  for (int64_t f = 0; f < outer; ++f) {
    for (int64_t tap = 0; tap < taps; ++tap) {
      for (int64_t c = 0; c < inner; ++c) {
        const int64_t from = turned ? (c * taps + taps - 1 - tap) * channels + f : (f * taps + tap) * channels + c;
        w[((f / together * taps + tap) * inner + c) * together + f % together] = weight.data[from];
      }
    }
  }
  return w;
}

template <class T>
void norm_convolution(int64_t images, int64_t channels, int64_t filters, lsda::Frame f, bool added, int threads) {
  const int64_t places = f.places(), size = images * places * channels, made = images * places * filters;
  const int64_t k = 2 * f.margin + 1, groups = 2, width = channels / groups;
  auto x = random<T>(size), v = random<T>(size), u = random<T>(made), a = random<T>(channels), b = random<T>(channels);
  auto weight = random<T>(filters * k * k * channels), bias = random<T>(filters), more = random<T>(made),
       less = random<T>(size);
  const auto ahead = packed(weight, filters, channels, k * k, false),
             back = packed(weight, filters, channels, k * k, true);
  Block<T> y(made), jvp(made), vjp(size), kept(2 * images * groups);
  Block<T> scratch(lsda::core::between_size(f, channels, filters, threads));
  const auto run = [&](T* out, const T* t, const Block<T>& w, const Block<T>* add, lsda::Product product) {
    lsda::NormConvParams<T> p = {};
    p.norm = {out,  kept.get(),         t,   x.get(), a.get(), b.get(), images, images, groups, width, f,
              1e-5, lsda::Layout::last, true};
    p.out = out;
    p.u = t;
    p.weight = w.data.get();
    p.bias = product == lsda::Product::value ? bias.get() : nullptr;
    p.add = added && add ? add->data.get() : nullptr;
    p.filters = filters;
    p.scratch = scratch.get();
    lsda::cpu::norm_conv(p, product, threads);
  };
  run(y.get(), x.get(), ahead, &more, lsda::Product::value);
  run(jvp.get(), v.get(), ahead, nullptr, lsda::Product::jvp);
  run(vjp.get(), u.get(), back, &less, lsda::Product::vjp);
  // The norm itself is checked elsewhere: its images with margins are what a plain convolution is of.
  Block<T> padded(images * lsda::core::padded_size(f, channels));
  lsda::cpu::norm<T, T>({padded.get(), kept.get(), x.get(), x.get(), a.get(), b.get(), images, images ? images : 1,
                         groups, width, f, 1e-5, lsda::Layout::last, true},
                        lsda::Product::value, threads);
  double forward = 0, backward = 0, sum = 0;
  for (int64_t image = 0; image < images; ++image) {
    for (int64_t place = 0; place < places; ++place) {
      const int64_t row = place / f.columns, column = place % f.columns;
      for (int64_t d = 0; d < filters; ++d) {
        const int64_t at = (image * places + place) * filters + d;
        double exact = static_cast<double>(bias[d]) + (added ? static_cast<double>(more[at]) : 0.0), scale = 1.0;
        for (int64_t tap = 0; tap < k * k; ++tap) {
          const int64_t pixel = (row + tap / k) * f.padded_columns() + column + tap % k;
          const T* in = padded.get() + (image * f.padded_rows() * f.padded_columns() + pixel) * channels;
          for (int64_t c = 0; c < channels; ++c) {
            const double term = static_cast<double>(in[c]) * weight[(d * k * k + tap) * channels + c];
            exact += term;
            scale += std::abs(term);
          }
        }
        expect(within<T>(y[at], exact, scale), "norm_conv");
        forward += static_cast<double>(u[at]) * jvp[at];
        sum += std::abs(static_cast<double>(u[at]) * jvp[at]);
      }
    }
  }
  for (int64_t i = 0; i < size; ++i) {
    backward += static_cast<double>(v[i]) * (vjp[i] - (added ? static_cast<double>(less[i]) : 0.0));
  }
  expect(within<T>(forward, backward, 8 * sum), "the products of norm_conv");
  // Without a norm: of padded images, and its transpose.
  lsda::NormConvParams<T> p = {};
  p.norm = {vjp.get(),          nullptr, v.get(), nullptr, nullptr, nullptr, images, images, 1, channels, f, 0.0,
            lsda::Layout::last, false};
  p.out = y.get();
  p.weight = ahead.data.get();
  p.filters = filters;
  p.scratch = scratch.get();
  p.bare = true;
  lsda::cpu::norm_conv(p, lsda::Product::jvp, threads);
  p.u = u.get();
  p.weight = back.data.get();
  lsda::cpu::norm_conv(p, lsda::Product::vjp, threads);
  forward = backward = sum = 0;
  for (int64_t i = 0; i < made; ++i) {
    forward += static_cast<double>(u[i]) * y[i];
    sum += std::abs(static_cast<double>(u[i]) * y[i]);
  }
  for (int64_t i = 0; i < size; ++i) backward += static_cast<double>(v[i]) * vjp[i];
  expect(within<T>(forward, backward, 8 * sum), "the transpose of geo_conv");
}

// A symmetric one: its products are their own transpose. Its transforms are any matrices.
template <class T>
void zonal_product(int64_t members, int64_t rows, int64_t columns, int64_t channels, int64_t modes, bool full,
                   int threads) {
  constexpr int64_t together = lsda::kTogetherColumns;
  const int64_t waves = columns / 2 + 1, n = rows * channels, size = members * columns * n;
  auto x = random<T>(size), v = random<T>(size), analysis = random<T>(2 * waves * columns);
  auto V = random<T>(waves * n * modes), floor = random<T>(waves * n), scale = random<T>(n);
  auto middle = random<T>(waves * modes * (full ? modes : 1));
  Block<T> synthesis(analysis.size), right(V.size), left(V.size), y(size), z(size);
  for (int64_t f = 0; f < 2 * waves; ++f) {
    for (int64_t c = 0; c < columns; ++c) synthesis[c * 2 * waves + f] = analysis[f * columns + c];
  }
  for (int64_t m = 0; m < waves; ++m) {
    for (int64_t i = 0; i < n; ++i) {
      for (int64_t j = 0; j < modes; ++j) {
        const T value = V[(m * n + i) * modes + j];
        right[m * n * modes + (j / together * n + i) * together + j % together] = value;
        left[m * n * modes + (i / together * modes + j) * together + i % together] = value;
      }
    }
    // Hermitian as it acts on real and imaginary parts: a real diagonal, the same in both halves.
    for (int64_t j = 0; j < modes; ++j) {
      const double value = 1.0 + static_cast<double>(j % (modes / 2));
      if (!full) middle[m * modes + j] = static_cast<T>(value);
      for (int64_t i = 0; full && i < modes; ++i) {
        middle[m * modes * modes + (j / together * modes + i) * together + j % together] =
            static_cast<T>(i == j ? value : 0.0);
      }
    }
  }
  lsda::ZonalParams<T> p = {y.get(),      x.get(),    analysis.get(), synthesis.get(), right.get(),
                            middle.get(), left.get(), floor.get(),    scale.get(),     scale.get(),
                            members,      rows,       columns,        channels,        waves,
                            modes,        full,       false,          nullptr};
  Block<T> scratch(lsda::zonal_scratch(p));
  p.scratch = scratch.get();
  lsda::cpu::zonal(p, threads);
  p.x = v.get();
  p.out = z.get();
  lsda::cpu::zonal(p, threads);
  double one = 0, other = 0, sum = 0;
  for (int64_t i = 0; i < size; ++i) {
    one += static_cast<double>(v[i]) * y[i];
    other += static_cast<double>(x[i]) * z[i];
    sum += std::abs(static_cast<double>(v[i]) * y[i]);
  }
  expect(within<T>(one, other, 8 * sum), "zonal");
  // Matrices that float holds give the same bits as float.
  Block<float> right_narrow(right.size), left_narrow(left.size);
  for (int64_t i = 0; i < right.size; ++i) {
    right[i] = right_narrow[i] = static_cast<float>(right[i]);
    left[i] = left_narrow[i] = static_cast<float>(left[i]);
  }
  p.out = y.get();
  lsda::cpu::zonal(p, threads);
  p.right = right_narrow.get();
  p.left = left_narrow.get();
  p.narrow = true;
  p.out = z.get();
  lsda::cpu::zonal(p, threads);
  for (int64_t i = 0; i < size; ++i) expect(y[i] == z[i], "zonal with narrow matrices");
}

template <class T>
void shuffle(int64_t members, int64_t rows, int64_t columns, int64_t channels, int64_t features, int64_t p,
             int threads) {
  constexpr int64_t together = lsda::kTogetherColumns;
  const int64_t coarse = members * rows * columns * channels, fine = members * rows * columns * p * p * features;
  const int64_t row = p * features;
  auto x = random<T>(coarse), u = random<T>(fine), weight = random<T>(p * row * channels), bias = random<T>(p * row);
  Block<T> ahead(weight.size), back(weight.size), y(fine), plain(fine), z(coarse);
  for (int64_t a = 0; a < p; ++a) {
    for (int64_t i = 0; i < row; ++i) {
      for (int64_t c = 0; c < channels; ++c) {
        const T w = weight[(a * row + i) * channels + c];
        ahead[((a * row + i) / together * channels + c) * together + i % together] = w;
        back[((c / together * p + a) * row + i) * together + c % together] = w;
      }
    }
  }
  lsda::cpu::shuffle<T>(
      {y.get(), x.get(), ahead.get(), bias.get(), members, rows, columns, channels, features, p, false}, threads);
  lsda::cpu::shuffle<T>(
      {plain.get(), x.get(), ahead.get(), nullptr, members, rows, columns, channels, features, p, false}, threads);
  lsda::cpu::shuffle<T>({z.get(), u.get(), back.get(), nullptr, members, rows, columns, channels, features, p, true},
                        threads);
  double forward = 0, backward = 0, sum = 0;
  for (int64_t i = 0; i < fine; ++i) {
    const int64_t place = i / features, X = place % (columns * p), Y = place / (columns * p) % (rows * p);
    const int64_t at = Y % p * row + X % p * features + i % features;
    const T* in = x.get() + ((place / (rows * p * columns * p) * rows + Y / p) * columns + X / p) * channels;
    double exact = bias[at], scale = 1.0;
    for (int64_t c = 0; c < channels; ++c) {
      const double term = static_cast<double>(in[c]) * weight[at * channels + c];
      exact += term;
      scale += std::abs(term);
    }
    expect(within<T>(y[i], exact, scale), "shuffle");
    forward += static_cast<double>(u[i]) * plain[i];
    sum += std::abs(static_cast<double>(u[i]) * plain[i]);
  }
  for (int64_t i = 0; i < coarse; ++i) backward += static_cast<double>(x[i]) * z[i];
  expect(within<T>(forward, backward, sum), "the transpose of shuffle");
}

// Two iterations of a problem with F F' = 2 1 and F b = 0: b is an eigenvector, found at once, and then stands still.
template <class T>
void restricted(int64_t members, int64_t P, int threads) {
  const int64_t n = P + 1;
  auto w = random<T>(members * P);
  Block<T> x(members * n, T(0)), r(2 * members * n, T(0)), p(2 * members * n), rr(members), f(members * P, T(0));
  Block<T> x1(members * n), r1(2 * members * n), p1(2 * members * n), rr1(members), Gw(members * P), limit(members);
  for (int64_t m = 0; m < members; ++m) {
    double square = 0;
    for (int64_t i = 0; i < P; ++i) {
      r[m * n + i] = w[m * P + i];
      r[(members + m) * n + i] = 2 * w[m * P + i];
      Gw[m * P + i] = 4 * w[m * P + i];
      square += 2.0 * static_cast<double>(w[m * P + i]) * w[m * P + i];
    }
    rr[m] = static_cast<T>(square);
    limit[m] = static_cast<T>(1e-6 * square);
  }
  for (int64_t i = 0; i < r.size; ++i) p[i] = r[i];
  const auto step = [&](Block<T>& x0, Block<T>& r0, Block<T>& p0, Block<T>& rr0, Block<T>& to) {
    Block<T> r2(r.size), p2(p.size), rr2(members);
    lsda::cpu::restricted_step<T>({to.get(), r2.get(), p2.get(), rr2.get(), x0.get(), r0.get(), p0.get(), rr0.get(),
                                   Gw.get(), f.get(), limit.get(), members, n},
                                  threads);
    for (int64_t i = 0; i < r.size; ++i) r1[i] = r2[i], p1[i] = p2[i];
    for (int64_t m = 0; m < members; ++m) rr1[m] = rr2[m];
  };
  step(x, r, p, rr, x1);
  for (int64_t m = 0; m < members; ++m) {
    for (int64_t i = 0; i < P; ++i) expect(close(x1[m * n + i], w[m * P + i] / 3.0, 8.0), "restricted_step");
    expect(rr1[m] <= limit[m], "what restricted_step leaves");
  }
  Block<T> x2(members * n), r0(r.size), p0(p.size), rr0(members);
  for (int64_t i = 0; i < r.size; ++i) r0[i] = r1[i], p0[i] = p1[i];
  for (int64_t m = 0; m < members; ++m) rr0[m] = rr1[m];
  step(x1, r0, p0, rr0, x2);
  for (int64_t i = 0; i < x.size; ++i) expect(x2[i] == x1[i], "restricted_step of who is there");
}

// One step towards the solution with f = F b where C is a floor alone, one cell a place and an observation a cell: F F'
// = slope factor floor slope of each. Then x = step b, and the same with a product in between.
template <class T>
void restricted_solve(int64_t members, int64_t rows, int64_t columns, int64_t iterations, int threads) {
  constexpr int64_t C = lsda::kTogetherColumns;
  const int64_t waves = columns / 2 + 1, S = rows * columns, n = S + 1, size = rows * C;
  auto f = random<T>(members * S), slope = random<T>(members * S);
  // F of something, so that lengths are positive.
  for (int64_t i = 0; i < f.size; ++i) f[i] *= slope[i] * slope[i];
  Block<T> x(members * n), rr(members), limit(members, T(0)), points(S, T(1)), layer(C, T(0));
  Block<T> analysis(2 * waves * columns, T(0)), synthesis(2 * waves * columns, T(0));
  Block<T> right(waves * size * C, T(0)), middle(waves * C * C, T(0)), left(waves * size * C, T(0));
  Block<T> floor(waves * size, T(2));
  Block<int32_t> place(S), start(S + 1), zero(S, 0), one_each(1, static_cast<int32_t>(S));
  for (int64_t i = 0; i <= S; ++i) start[i] = static_cast<int32_t>(i);
  for (int64_t i = 0; i < S; ++i) place[i] = static_cast<int32_t>(i);
  layer[0] = T(1);
  // Any orthogonal transform of the columns: those before the real parts of the waves end, the rest behind.
  for (int64_t c = 0; c < columns; ++c) {
    const int64_t mode = c < waves ? c : waves + c - waves + 1;
    analysis[mode * columns + c] = synthesis[c * 2 * waves + mode] = T(1);
  }
  for (int64_t m = 0; m < members; ++m) rr[m] = T(100);
  Block<int64_t> tile(6, 0);
  tile[3] = S;
  tile[4] = 1;
  tile[5] = S;
  lsda::cpu::restricted_solve<T>(
      {x.get(),
       f.get(),
       rr.get(),
       limit.get(),
       slope.get(),
       0.5,
       iterations,
       members,
       S,
       {nullptr, nullptr, place.get(), points.get(), members, S, S, 1, nullptr},
       {nullptr, nullptr, place.get(), one_each.get(), place.get(), points.get(), tile.get(), members, S, S, nullptr},
       {layer.get(), place.get(), start.get(), zero.get(), place.get(), start.get(), place.get(), members, C, S, S, 1,
        S, true},
       {nullptr, nullptr, analysis.get(), synthesis.get(), right.get(), middle.get(), left.get(), floor.get(), nullptr,
        nullptr, members, rows, columns, C, waves, C, true, false, nullptr}},
      threads);
  // The same among numbers of each observation, in float64.
  for (int64_t m = 0; m < members; ++m) {
    std::vector<double> u(static_cast<size_t>(S), 0.0), r(u), p(u), G(u);
    double b = 0, rb = 1, pb = 1, square = 100;
    const auto products = [&](const std::vector<double>& q, double a, std::vector<double>& out) {
      double along = a * 100;
      for (int64_t i = 0; i < S; ++i) {
        const size_t k = static_cast<size_t>(i);
        out[k] = G[k] * q[k] + a * f[m * S + i];
        along += q[k] * f[m * S + i];
      }
      return along;
    };
    for (int64_t i = 0; i < S; ++i) G[static_cast<size_t>(i)] = 1.0 * slope[m * S + i] * slope[m * S + i];
    std::vector<double> w(u), s(u);
    for (int64_t it = 0; it < iterations; ++it) {
      double curvature = products(p, pb, w) * pb;
      for (size_t k = 0; k < w.size(); ++k) curvature += p[k] * w[k] + w[k] * w[k];
      const double step = square / curvature;
      for (size_t k = 0; k < w.size(); ++k) u[k] += step * p[k], r[k] -= step * (p[k] + w[k]);
      b += step * pb;
      rb -= step * pb;
      double next = products(r, rb, s) * rb;
      for (size_t k = 0; k < s.size(); ++k) next += r[k] * s[k];
      for (size_t k = 0; k < s.size(); ++k) p[k] = r[k] + next / square * p[k];
      pb = rb + next / square * pb;
      square = next;
    }
    expect(close(x[m * n + S], b, 64.0), "restricted_solve");
    for (int64_t i = 0; i < S; ++i) expect(close(x[m * n + i], u[static_cast<size_t>(i)], 64.0), "restricted_solve");
  }
}

template <class T>
void products(int threads) {
  shuffle<T>(3, 2, 5, 16, 8, 2, threads);
  shuffle<T>(0, 2, 5, 16, 16, 1, threads);
  restricted<T>(5, 700, threads);
  restricted<T>(0, 7, threads);
  for (int64_t iterations : {0, 1, 3}) {
    restricted_solve<T>(3, 4, 6, iterations, threads);
    restricted_solve<T>(0, 4, 6, iterations, threads);
  }
  const lsda::Frame globe = {5, 9, 1, true, true, true, false}, region = {4, 13, 2, false, false, true, false};
  const lsda::Frame even = {6, 8, 1, true, true, false, false}, apart = {4, 6, 1, false, false, true, false};
  for (bool flag : {false, true}) {
    for (const lsda::Frame& frame : {globe, region, even, apart}) {
      norm_convolution<T>(4, 16, 48, frame, flag, threads);
      norm_convolution<T>(0, 16, 16, frame, flag, threads);
    }
    norm_convolution<T>(1, 32, 16, globe, flag, threads);
    norm_convolution<T>(1, 32, 48, even, flag, threads);
    zonal_product<T>(5, 3, 8, 16, 32, flag, threads);
    zonal_product<T>(0, 3, 8, 16, 16, flag, threads);
  }
}
