// SPDX-License-Identifier: Apache-2.0
// The kernels of csrc/cuda, run on the host (cuda/cuda_runtime.h), against the CPU's algorithms on memory of exactly
// its size: the same bits, but for cg_step and the cost of obs_residual, whose sums have an order of their own.
// Built with the address and undefined-behaviour sanitizers by tests/test_kernels_sanitizer.py. Says "ok" and returns
// 0, or what went wrong.
#include <vector>

#include "core/obs_adjoint.h"
#include "cuda_checks.h"
#include "cuda_residual.h"

namespace {

Block<int32_t> below(int64_t n, int64_t end) {
  Block<int32_t> numbers(n, 0);
  for (int64_t i = 0; i < n; ++i) numbers[i] = static_cast<int32_t>(generator() % static_cast<uint64_t>(end));
  return numbers;
}

// Where the entries of each of `count` bins begin, and the entries bin by bin, in their order.
void by_bin(Block<int32_t>& bin, Block<int32_t>& begin, Block<int32_t>& entry) {
  for (int64_t i = 0; i < bin.size; ++i) ++begin[bin[i] + 1];
  for (int64_t s = 0; s + 1 < begin.size; ++s) begin[s + 1] += begin[s];
  std::vector<int32_t> next(begin.get(), begin.get() + begin.size);
  for (int64_t i = 0; i < bin.size; ++i) entry[next[static_cast<size_t>(bin[i])]++] = static_cast<int32_t>(i);
}

template <class T>
void observations(int64_t M, int64_t N, int64_t P, int64_t K) {
  auto index = below(K * P, N);
  auto weight = random<T>(K * P), x = random<T>(M * N), r = random<T>(M * P);
  Block<T> y(M * P), expected(M * P);
  lsda::ProjectParams<T> a = {};
  a.y = y.get(), a.x = x.get(), a.index = index.get(), a.weight = weight.get();
  a.members = M, a.cells = N, a.observations = P, a.points = K;
  launched(lsda::cuda::obs_project(a, kStream));
  a.y = expected.get();
  for (int64_t m = 0; m < M; ++m) {
    for (int64_t block = 0; block < lsda::blocks_of(P, lsda::kObservationBlock); ++block) {
      lsda::core::obs_project(a, m, block);
    }
  }
  expect(same(y, expected), "obs_project");
  for (int kind = 0; kind < 3; ++kind) {
    for (bool given : {false, true}) residual(a, static_cast<lsda::Robust>(kind), given);
  }

  // Entries observation by observation, as in ObservationPlan.
  Block<int32_t> cell(K * P, 0), start(N + 1, 0), entry(K * P, 0), observation(K * P, 0);
  for (int64_t i = 0; i < K * P; ++i) cell[i] = index[i % K * P + i / K];
  by_bin(cell, start, entry);
  Block<T> entry_weight(K * P), z(M * N), sums(M * N, T(0));
  for (int64_t e = 0; e < K * P; ++e) {
    observation[e] = static_cast<int32_t>(entry[e] / K);
    entry_weight[e] = weight[entry[e] % K * P + observation[e]];
  }
  launched(lsda::cuda::obs_adjoint<T>({z.get(), r.get(), start.get(), observation.get(), entry_weight.get(), M, N, P},
                                      kStream));
  for (int64_t m = 0; m < M; ++m) {
    for (int64_t c = 0; c < N; ++c) {
      for (int64_t e = start[c]; e < start[c + 1]; ++e) sums[m * N + c] += entry_weight[e] * r[m * P + observation[e]];
    }
  }
  expect(same(z, sums), "obs_adjoint");
}

// Sites at every other place, with up to `most` rows each.
template <class T>
void head(int64_t M, int64_t F, int64_t S, int64_t taps, int64_t R, uint64_t most, bool last) {
  const int64_t sites = S / 2;
  auto neighbour = below(sites * taps, S);
  Block<int32_t> start(sites + 1, 0), begin(S + 1, 0), entry(sites * taps, 0);
  by_bin(neighbour, begin, entry);
  for (int64_t q = 0; q < sites; ++q) start[q + 1] = start[q] + static_cast<int32_t>(1 + generator() % most);
  const int64_t U = start[sites];
  auto row = below(U, R);
  Block<int32_t> output(U, 0);
  for (int64_t u = 0; u < U; ++u) output[u] = static_cast<int32_t>(U - 1 - u);
  auto weight = random<T>(R * taps * F), x = random<T>(M * F * S), r = random<T>(M * U);
  Block<T> y(M * U), y0(M * U), z(M * F * S), z0(M * F * S), scratch(M * taps * F), sums(M * F);
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
  launched(lsda::cuda::head_project<T>(a, x.get(), y.get(), kStream));
  for (int64_t q = 0; q < sites; ++q) {
    lsda::core::head_project<T>(a, x.get(), y0.get(), scratch.get(), q, 0, M);
  }
  expect(same(y, y0), "head_project");
  launched(lsda::cuda::head_adjoint<T>(a, r.get(), z.get(), kStream));
  for (int64_t block = 0; block < lsda::blocks_of(S, lsda::kPlaceBlock); ++block) {
    lsda::core::head_adjoint<T>(a, r.get(), z0.get(), sums.get(), block, 0, M);
  }
  expect(same(z, z0), "head_adjoint");
}

template <class T>
struct System {
  System(int64_t M, int64_t n)
      : x(random<T>(M * n)), r(random<T>(M * n)), p(random<T>(M * n)), Ap(M * n), rr(M), limit(M, T(0)) {
    for (int64_t m = 0; m < M; ++m) {
      double sum = 0;
      for (int64_t i = m * n; i < (m + 1) * n; ++i) {
        Ap[i] = T(1.5) * p[i] + T(0.1) * x[i];
        sum += static_cast<double>(r[i]) * r[i];
      }
      rr[m] = static_cast<T>(sum);
    }
    if (M > 1) limit[1] = rr[1];
    for (int64_t i = 2 * n; M > 2 && i < 3 * n; ++i) Ap[i] = -p[i];
  }

  lsda::CgParams<T> in_place(int64_t m, int64_t members, int64_t n) {
    T *x_m = x.get() + m * n, *r_m = r.get() + m * n, *p_m = p.get() + m * n, *rr_m = rr.get() + m;
    return {x_m, r_m, p_m, rr_m, x_m, r_m, p_m, rr_m, Ap.get() + m * n, limit.get() + m, members, n};
  }

  Block<T> x, r, p, Ap, rr, limit;
};

// Member 1 has converged, member 2 has p'Ap < 0.
template <class T>
void conjugate_gradients(int64_t M, int64_t n, int blocks) {
  System<T> s(M, n);
  Block<T> x(M * n), r(M * n), p(M * n), rr(M);
  lsda::CgParams<T> a = s.in_place(0, M, n);
  a.x = x.get(), a.r = r.get(), a.p = p.get(), a.rr = rr.get();
  launched(lsda::cuda::cg_step(a, kStream));
  expect(host::last_cluster == blocks, "the number of blocks");
  for (int64_t m = 0; m < M; ++m) {
    double curvature = 0, squares = 0, size = 0;
    for (int64_t i = m * n; i < (m + 1) * n; ++i) curvature += static_cast<double>(s.p[i]) * s.Ap[i];
    const bool going = s.rr[m] > s.limit[m] && curvature > 0;
    expect(going == (m != 1 && m != 2), "a member of the test");
    const double step = going ? s.rr[m] / curvature : 0;
    for (int64_t i = m * n; i < (m + 1) * n; ++i) {
      const double residual = s.r[i] - step * s.Ap[i];
      squares += residual * residual;
      size += std::abs(residual) + std::abs(s.r[i]);
    }
    const double turn = squares / s.rr[m];
    for (int64_t i = m * n; i < (m + 1) * n; ++i) {
      expect(going || (x[i] == s.x[i] && r[i] == s.r[i] && p[i] == s.p[i] && rr[m] == s.rr[m]), "a still member");
      if (!going) continue;
      const double residual = s.r[i] - step * s.Ap[i], scale = 4 + std::abs(step) * 4;
      expect(close(x[i], s.x[i] + step * s.p[i], scale), "cg_step x");
      expect(close(r[i], residual, scale), "cg_step r");
      expect(close(p[i], residual + turn * s.p[i], scale * (1 + turn)), "cg_step p");
    }
    expect(!going || close(rr[m], squares, size), "cg_step rr");
  }
  // In place, and each member alone: the same bits.
  for (int64_t m = 0; m < M; ++m) launched(lsda::cuda::cg_step(s.in_place(m, 1, n), kStream));
  expect(same(s.x, x) && same(s.r, r) && same(s.p, p) && same(s.rr, rr), "cg_step in place, a member alone");
}

template <class T>
void adam(int64_t n, int64_t shift) {
  auto v = random<T>(n + shift), m = random<T>(n + shift), g = random<T>(n + shift);
  Block<T> s(n + shift, T(0.5)), v1(n), m1(n), s1(n), v2(n), m2(n), s2(n);
  lsda::AdamParams<T> a = {v1.get(),        m1.get(), s1.get(), v.get() + shift, m.get() + shift, s.get() + shift,
                           g.get() + shift, T(0.1),   T(0.9),   T(0.1),          T(0.9),          T(0.1),
                           T(0.001),        T(1),     n};
  launched(lsda::cuda::adam_step(a, kStream));
  a.v = v2.get(), a.m = m2.get(), a.s = s2.get();
  for (int64_t block = 0; block < lsda::blocks_of(n); ++block) lsda::core::adam_step(a, block);
  expect(same(v1, v2) && same(m1, m2) && same(s1, s2), "adam_step");
}

template <class T>
void everything() {
  for (int64_t K : {1, 2, 3, 4, 8}) observations<T>(5, 777, 300, K);
  observations<T>(1, 1, 1, 1);
  observations<T>(3, 300, 0, 4);
  observations<T>(0, 300, 20, 4);
  observations<T>(17, 9, 600, 3);
  for (bool last : {false, true}) {
    head<T>(1, 37, 40, 9, 5, 6, last);
    head<T>(6, 5, 41, 9, 5, 6, last);
    head<T>(4, 130, 6, 1, 40, 70, last);
    head<T>(0, 8, 4, 9, 3, 6, last);
    head<T>(2, 1, 1, 1, 1, 1, last);
  }
  for (int major : {8, 9}) {
    host::major = major;
    const bool clusters = major > 8;
    conjugate_gradients<T>(3, 1, 1);
    conjugate_gradients<T>(3, 4096, 1);
    conjugate_gradients<T>(3, 4097, clusters ? 2 : 1);
    conjugate_gradients<T>(1, 12345, clusters ? 4 : 1);
    conjugate_gradients<T>(2, 50001, clusters ? 8 : 1);
  }
  launched(lsda::cuda::cg_step(System<T>(0, 7).in_place(0, 0, 7), kStream));
  for (int64_t n : {0, 1, 256, 1000, 4099}) {
    adam<T>(n, 0);
    adam<T>(n, 1);
  }
}

}  // namespace

int main() {
  everything<float>();
  everything<double>();
  std::puts("ok");
  return 0;
}
