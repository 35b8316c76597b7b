// SPDX-License-Identifier: Apache-2.0
// Every operation on memory of exactly its size, against plain loops, on each instruction set: built with the address
// and undefined-behaviour sanitizers by tests/test_kernels_sanitizer.py. Says "ok" and returns 0, or what went wrong.
#include <cmath>
#include <cstdio>
#include <vector>

#include "checks.h"
#include "cpu/dispatch.h"
#include "cpu/ops.h"
#include "norms.h"
#include "products.h"

namespace {

// Of observations that are already projected, with every robust cost.
template <class T>
void residual(lsda::ProjectParams<T> project, lsda::Robust kind, int threads) {
  const int64_t M = project.members, P = project.observations;
  const double number = kind == lsda::Robust::huber ? 1.5 : 0.01;
  auto target = random<T>(P), precision = random<T>(P), noise = random<T>(M * P);
  if (P) precision[0] = T(0);
  Block<T> r(M * P), slope(kind == lsda::Robust::gaussian ? 0 : M * P), cost(M);
  const T* y = project.y;
  project.y = r.get();
  lsda::cpu::obs_residual<T>({project, slope.get(), nullptr, target.get(), precision.get(), noise.get(), kind, number},
                             cost.get(), threads);
  for (int64_t m = 0; m < M; ++m) {
    double total = 0;
    for (int64_t p = 0; p < P; ++p) {
      const int64_t i = m * P + p;
      const T d = precision[p] == T(0) ? T(0) : (y[i] - target[p]) * precision[p] - noise[i];
      const double size = std::abs(static_cast<double>(d)), E = std::exp(-0.5 * size * size);
      double w = 1, rho = 0.5 * size * size;
      if (kind == lsda::Robust::huber && size > number) w = number / size, rho = number * (size - 0.5 * number);
      if (kind == lsda::Robust::variational) w = E / (number + E), rho = -std::log((number + E) / (number + 1));
      expect(close(r[i], std::sqrt(w) * static_cast<double>(d)), "obs_residual");
      if (slope.size) expect(close(slope[i], std::sqrt(w) * static_cast<double>(precision[p])), "slope");
      total += rho;
    }
    expect(close(cost[m], total), "cost");
  }
}

// One tile suffices for the layout of the transpose: cells in order, entries of a cell in columns.
template <class T>
void observations(int64_t M, int64_t N, int64_t P, int64_t K, int threads) {
  Block<int32_t> index(K * P, 0);
  for (int64_t i = 0; i < K * P; ++i) index[i] = static_cast<int32_t>(generator() % static_cast<uint64_t>(N));
  auto weight = random<T>(K * P), x = random<T>(M * N), r = random<T>(M * P);
  Block<T> y(M * P);
  const lsda::ProjectParams<T> project = {y.get(), x.get(), index.get(), weight.get(), M, N, P, K};
  lsda::cpu::obs_project<T>(project, threads);
  for (int64_t m = 0; m < M; ++m) {
    for (int64_t p = 0; p < P; ++p) {
      double sum = 0;
      for (int64_t k = 0; k < K; ++k) sum += static_cast<double>(weight[k * P + p]) * x[m * N + index[k * P + p]];
      expect(close(y[m * P + p], sum, static_cast<double>(K)), "obs_project");
    }
  }
  // The same from a stencil the other way round.
  Block<int32_t> back(K * P, 0), rank(P, 0);
  Block<T> back_weight(K * P), again(M * P);
  for (int64_t p = 0; p < P; ++p) {
    rank[p] = static_cast<int32_t>(P - 1 - p);
    for (int64_t k = 0; k < K; ++k) {
      back[k * P + rank[p]] = index[k * P + p];
      back_weight[k * P + rank[p]] = weight[k * P + p];
    }
  }
  lsda::cpu::obs_project<T>({again.get(), x.get(), back.get(), back_weight.get(), M, N, P, K, rank.get()}, threads);
  for (int64_t i = 0; i < M * P; ++i) expect(again[i] == y[i], "obs_project by place");
  for (int kind = 0; kind < 3; ++kind) residual<T>(project, static_cast<lsda::Robust>(kind), threads);
  if (N > lsda::kTile) return;

  std::vector<std::vector<int64_t>> entries(static_cast<size_t>(N));
  for (int64_t e = 0; e < K * P; ++e) entries[static_cast<size_t>(index[e])].push_back(e);
  std::vector<int64_t> touched;
  for (size_t rank = static_cast<size_t>(K * P); rank > 0; --rank) {
    for (int64_t c = 0; c < N; ++c) {
      if (entries[static_cast<size_t>(c)].size() == rank) touched.push_back(c);
    }
  }
  std::vector<int64_t> order, lengths;
  for (size_t column = 0;; ++column) {
    int64_t length = 0;
    for (int64_t c : touched) {
      if (entries[static_cast<size_t>(c)].size() > column) {
        order.push_back(entries[static_cast<size_t>(c)][column]);
        ++length;
      }
    }
    if (length == 0) break;
    lengths.push_back(length);
  }
  const auto size = [](const auto& v) { return static_cast<int64_t>(v.size()); };
  Block<int32_t> cell(size(touched), 0), length(size(lengths), 0), observation(size(order), 0);
  Block<T> entry_weight(size(order));
  Block<int64_t> tile(6, 0);
  for (int64_t i = 0; i < cell.size; ++i) cell[i] = static_cast<int32_t>(touched[static_cast<size_t>(i)]);
  for (int64_t i = 0; i < length.size; ++i) length[i] = static_cast<int32_t>(lengths[static_cast<size_t>(i)]);
  for (int64_t i = 0; i < observation.size; ++i) {
    observation[i] = static_cast<int32_t>(order[static_cast<size_t>(i)] % P);
    entry_weight[i] = weight[order[static_cast<size_t>(i)]];
  }
  tile[3] = cell.size;
  tile[4] = length.size;
  tile[5] = observation.size;
  Block<T> z(M * N);
  lsda::cpu::obs_adjoint<T>(
      {z.get(), r.get(), cell.get(), length.get(), observation.get(), entry_weight.get(), tile.get(), M, N, P},
      threads);
  for (int64_t m = 0; m < M; ++m) {
    for (int64_t c = 0; c < N; ++c) {
      double sum = 0, scale = 0;
      for (int64_t e : entries[static_cast<size_t>(c)]) {
        sum += static_cast<double>(weight[e]) * r[m * P + e % P];
        scale += std::abs(static_cast<double>(weight[e]) * r[m * P + e % P]);
      }
      expect(close(z[m * N + c], sum, scale), "obs_adjoint");
    }
  }
  Block<T> same(M * N);
  for (int64_t i = 0; i < observation.size; ++i) observation[i] = rank[observation[i]];
  lsda::cpu::obs_adjoint<T>({same.get(), r.get(), cell.get(), length.get(), observation.get(), entry_weight.get(),
                             tile.get(), M, N, P, rank.get()},
                            threads);
  for (int64_t i = 0; i < M * N; ++i) expect(same[i] == z[i], "obs_adjoint by place");
}

// Rows of random number at every other place, each with `taps` neighbours anywhere.
template <class T>
void head(int64_t M, int64_t F, int64_t S, int64_t taps, int64_t R, bool last, int threads) {
  const int64_t sites = S / 2;
  Block<int32_t> neighbour(sites * taps, 0), start(sites + 1, 0), begin(S + 1, 0), entry(sites * taps, 0);
  for (int64_t i = 0; i < neighbour.size; ++i) {
    neighbour[i] = static_cast<int32_t>(generator() % static_cast<uint64_t>(S));
    ++begin[neighbour[i] + 1];
  }
  for (int64_t s = 0; s < S; ++s) begin[s + 1] += begin[s];
  std::vector<int32_t> next(begin.get(), begin.get() + S);
  for (int64_t i = 0; i < neighbour.size; ++i) {
    entry[next[static_cast<size_t>(neighbour[i])]++] = static_cast<int32_t>(i);
  }
  for (int64_t q = 0; q < sites; ++q) start[q + 1] = start[q] + static_cast<int32_t>(1 + generator() % 6);
  const int64_t U = start[sites];
  Block<int32_t> row(U, 0), output(U, 0);
  for (int64_t u = 0; u < U; ++u) {
    row[u] = static_cast<int32_t>(generator() % static_cast<uint64_t>(R));
    output[u] = static_cast<int32_t>(U - 1 - u);
  }
  auto weight = random<T>(R * taps * F), x = random<T>(M * F * S), r = random<T>(M * U);
  Block<T> y(M * U), z(M * F * S);
  const lsda::HeadParams<T> a = {weight.get(),
                                 neighbour.get(),
                                 start.get(),
                                 row.get(),
                                 output.get(),
                                 begin.get(),
                                 entry.get(),
                                 M,
                                 F,
                                 S,
                                 sites,
                                 taps,
                                 U,
                                 last};
  lsda::cpu::head_project<T>(a, x.get(), y.get(), threads);
  lsda::cpu::head_adjoint<T>(a, r.get(), z.get(), threads);
  const auto at = [&](int64_t m, int64_t f, int64_t s) { return m * F * S + (last ? s * F + f : f * S + s); };
  std::vector<double> sums(static_cast<size_t>(M * F * S)), scales(sums.size());
  for (int64_t m = 0; m < M; ++m) {
    for (int64_t q = 0; q < sites; ++q) {
      for (int64_t u = start[q]; u < start[q + 1]; ++u) {
        double sum = 0;
        for (int64_t i = 0; i < taps * F; ++i) {
          const int64_t place = at(m, i % F, neighbour[q * taps + i / F]);
          const double w = weight[row[u] * taps * F + i], pushed = w * r[m * U + output[u]];
          sum += w * x[place];
          sums[static_cast<size_t>(place)] += pushed;
          scales[static_cast<size_t>(place)] += std::abs(pushed);
        }
        expect(close(y[m * U + output[u]], sum, static_cast<double>(taps * F)), "head_project");
      }
    }
  }
  for (int64_t i = 0; i < z.size; ++i) {
    const auto n = static_cast<size_t>(i);
    expect(close(z[i], sums[n], scales[n]), "head_adjoint");
  }
}

template <class T>
void sampler(int64_t M, int64_t n, int threads) {
  Block<int64_t> member(M, 0);
  for (int64_t m = 0; m < M; ++m) member[m] = m;
  for (int64_t terms = 0; terms <= lsda::kTerms; ++terms) {
    std::vector<Block<T>> term;
    lsda::SamplerParams<T> a = {};
    for (int64_t j = 0; j < terms; ++j) {
      term.push_back(random<T>(M * n));
      a.term[j] = term.back().get();
      a.coefficient[j] = T(0.5) * static_cast<T>(j + 1);
    }
    Block<T> plain(M * n), noisy(M * n), noise(M * n);
    a.member = member.get();
    a.members = M;
    a.size = n;
    const int64_t seed = 7;
    a.seed = &seed;
    a.out = noise.get();
    a.scale = T(1);
    lsda::cpu::sampler_step(a, threads);
    a.terms = terms;
    a.out = noisy.get();
    lsda::cpu::sampler_step(a, threads);
    a.scale = T(0);
    a.out = plain.get();
    lsda::cpu::sampler_step(a, threads);
    for (int64_t i = 0; i < M * n; ++i) {
      double sum = 0;
      for (int64_t j = 0; j < terms; ++j)
        sum += static_cast<double>(a.coefficient[j]) * term[static_cast<size_t>(j)][i];
      expect(close(plain[i], sum, 8.0), "sampler_step");
      expect(close(noisy[i], sum + static_cast<double>(noise[i]), 8.0), "sampler_step with noise");
    }
  }
}

template <class T>
void conjugate_gradients(int64_t M, int64_t n, int threads) {
  auto x = random<T>(M * n), r = random<T>(M * n), p = random<T>(M * n), Ap = random<T>(M * n);
  Block<T> x1(M * n), r1(M * n), p1(M * n), rr(M, T(1)), rr1(M), limit(M, T(0));
  if (M > 1) limit[1] = T(2);
  lsda::cpu::cg_step<T>(
      {x1.get(), r1.get(), p1.get(), rr1.get(), x.get(), r.get(), p.get(), rr.get(), Ap.get(), limit.get(), M, n},
      threads);
  for (int64_t m = 0; m < M; ++m) {
    double curvature = 0;
    for (int64_t i = m * n; i < (m + 1) * n; ++i) curvature += static_cast<double>(p[i]) * Ap[i];
    const bool going = rr[m] > limit[m] && curvature > 0;
    const T step = going ? static_cast<T>(1.0 / curvature) : T(0);
    for (int64_t i = m * n; i < (m + 1) * n; ++i) {
      const double move = std::abs(static_cast<double>(step)) * 100;
      expect(close(x1[i], static_cast<double>(x[i]) + static_cast<double>(step) * p[i], move), "cg_step x");
      expect(close(r1[i], static_cast<double>(r[i]) - static_cast<double>(step) * Ap[i], move), "cg_step r");
      expect(going || p1[i] == p[i], "cg_step of a member that stands still");
    }
  }
}

template <class T>
void adam(int64_t n, int threads) {
  auto v = random<T>(n), m = random<T>(n), g = random<T>(n);
  Block<T> s(n, T(0.5)), v1(n), m1(n), s1(n);
  lsda::cpu::adam_step<T>({v1.get(), m1.get(), s1.get(), v.get(), m.get(), s.get(), g.get(), T(0.1), T(1), T(0.1),
                           T(0.9), T(0.1), T(0.001), T(1), n},
                          threads);
  for (int64_t i = 0; i < n; ++i) {
    const double gradient = static_cast<double>(g[i]) + v[i];
    const double moment = m[i] + 0.1 * (gradient - m[i]), square = 0.9 * 0.5 + 0.1 * gradient * gradient;
    expect(close(v1[i], v[i] - 0.1 * moment / (std::sqrt(square) + 0.001), 2.0), "adam_step");
  }
}

// The elementary functions of the noise, where they are most likely to be wrong, against the C library.
void normal_edges() {
  for (uint64_t base : {uint64_t{0}, uint64_t{1} << 20, uint64_t{1} << 29, uint64_t{3} << 29, uint64_t{1} << 31,
                        uint64_t{5} << 29, uint64_t{7} << 29, (uint64_t{1} << 32) - 1}) {
    for (int64_t shift = -3; shift <= 3; ++shift) {
      const auto word = static_cast<uint32_t>(base + static_cast<uint64_t>(shift));
      const long double u = (static_cast<long double>(word) + 0.5L) / 4294967296.0L;
      const double logarithm = lsda::core::log_of(static_cast<double>(u));
      const long double exact = std::log(u);
      expect(std::abs((logarithm - exact) / exact) < 2.3e-16L, "log");
      const double x = static_cast<double>((u - std::floor(u + 0.5L)) * 1.57079632679489661923L);
      expect(std::abs(lsda::core::sin_octant(x) - std::sin(x)) <= 2.3e-16 * std::abs(std::sin(x)), "sin");
      expect(std::abs(lsda::core::cos_octant(x) - std::cos(x)) <= 2.3e-16, "cos");
    }
  }
}

template <class T>
void everything(int threads) {
  for (int64_t N : {int64_t{1}, int64_t{777}, lsda::kTile, int64_t{40000}}) {
    for (int64_t P : {0, 1, 300, 9001}) observations<T>(3, N, P, 4, threads);
  }
  observations<T>(40, 100, 257, 3, threads);
  observations<T>(0, 100, 257, 3, threads);
  for (bool last : {false, true}) {
    head<T>(3, 1, 2, 1, 1, last, threads);
    head<T>(2, 37, 700, 9, 5, last, threads);
    head<T>(20, 64, 30, 1, 40, last, threads);
    head<T>(0, 8, 1, 9, 3, last, threads);
  }
  for (int64_t n : {1, 5, 127, 4096, 4097}) {
    sampler<T>(2, n, threads);
    conjugate_gradients<T>(3, n, threads);
    adam<T>(n, threads);
  }
  sampler<T>(9, 9001, threads);
  conjugate_gradients<T>(1, 100000, threads);
  conjugate_gradients<T>(0, 10, threads);
  adam<T>(100000, threads);
  normalisations<T>(threads);
  products<T>(threads);
  adam<T>(0, threads);
}

}  // namespace

int main() {
  normal_edges();
  for (int isa = 0; isa <= static_cast<int>(lsda::best_isa()); ++isa) {
    lsda::current_isa = static_cast<lsda::Isa>(isa);
    for (int threads : {1, 3}) {
      everything<float>(threads);
      everything<double>(threads);
    }
    Block<uint32_t> counters(4 * 33, 5), words(4 * 33, 0);
    lsda::cpu::philox(words.get(), counters.get(), 33, 9);
    expect(words[0] == words[32] && words[0] != 0, "philox");
  }
  std::puts("ok");
  return 0;
}
