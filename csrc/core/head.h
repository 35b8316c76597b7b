// SPDX-License-Identifier: Apache-2.0
// The last, linear layer of a decoder, only where the state is looked at. Site q has a patch of features, those of its
// neighbours, and the rows of the weight that are wanted there:
//
//   patch[m, q, (t, f)] = features[m, f, neighbour[q, t]]
//   values[m, output[u]] = sum_tf weight[row[u], (t, f)] patch[m, q, (t, f)],  start[q] <= u < start[q + 1].
//
// The transpose is a gather: place s sums over the entries (q, t) that read it, in their order. The patches are never
// formed there, no two threads write one place, and a row of the weight serves several members while it is in cache.
#pragma once

#include "core/base.h"
#include "core/dot.h"

namespace lsda {

// Feature places of a task of the transpose.
constexpr int64_t kPlaceBlock = 32;

template <class T>
struct HeadParams {
  const T* weight;           // (R, taps F)
  const int32_t* neighbour;  // (sites, taps)
  const int32_t* start;      // (sites + 1)
  const int32_t* row;        // (U)
  const int32_t* output;     // (U)
  const int32_t* begin;      // (S + 1): where the entries of a place begin
  const int32_t* entry;      // (sites taps): q taps + t
  int64_t members, features, places, sites, taps, values;
  bool last;  // features are (M, S, F) rather than (M, F, S)
};

namespace core {

// Site q of members [first, last); `patches` has room for them.
template <class T>
LSDA_INLINE void head_project(const HeadParams<T>& a, const T* x, T* y, T* patches, int64_t q, int64_t first,
                              int64_t last) {
  const int64_t F = a.features, S = a.places, size = a.taps * F;
  for (int64_t m = first; m < last; ++m) {
    for (int64_t t = 0; t < a.taps; ++t) {
      const T* __restrict from = x + m * F * S + a.neighbour[q * a.taps + t] * (a.last ? F : 1);
      T* __restrict to = patches + (m - first) * size + t * F;
      if (a.last) {
        for (int64_t f = 0; f < F; ++f) to[f] = from[f];
      } else {
        for (int64_t f = 0; f < F; ++f) to[f] = from[f * S];
      }
    }
  }
  const int64_t end = a.start[q + 1];
  for (int64_t u = a.start[q]; u < end; u += 4) {
    const T* w[4];
    for (int64_t i = 0; i < 4; ++i) w[i] = a.weight + a.row[smaller(u + i, end - 1)] * size;
    for (int64_t m = first; m < last; ++m) {
      T sum[4];
      dots(sum, w, patches + (m - first) * size, size);
      for (int64_t i = 0; i < smaller(4, end - u); ++i) y[m * a.values + a.output[u + i]] = sum[i];
    }
  }
}

// Members that share what the transpose reads of the weight.
constexpr int kHeadMembers = 4;

// sums[g][f] += what the rows of site q bring through tap t to G members, four at a time while there are four.
template <int G, class T>
LSDA_INLINE void head_rows(const HeadParams<T>& a, const T* y, T* __restrict sums, int64_t q, int64_t t) {
  const int64_t F = a.features, size = a.taps * F, end = a.start[q + 1];
  const T* __restrict weight = a.weight + t * F;
  int64_t u = a.start[q];
  for (; u + 4 <= end; u += 4) {
    T r[G][4];
    for (int g = 0; g < G; ++g) {
      for (int i = 0; i < 4; ++i) r[g][i] = y[g * a.values + a.output[u + i]];
    }
    const T* __restrict w0 = weight + a.row[u] * size, * __restrict w1 = weight + a.row[u + 1] * size;
    const T* __restrict w2 = weight + a.row[u + 2] * size, * __restrict w3 = weight + a.row[u + 3] * size;
#pragma omp simd
    for (int64_t f = 0; f < F; ++f) {
      for (int g = 0; g < G; ++g) {
        sums[g * F + f] += (r[g][0] * w0[f] + r[g][1] * w1[f]) + (r[g][2] * w2[f] + r[g][3] * w3[f]);
      }
    }
  }
  for (; u < end; ++u) {
    const T* __restrict w = weight + a.row[u] * size;
    for (int g = 0; g < G; ++g) {
      const T r = y[g * a.values + a.output[u]];
#pragma omp simd
      for (int64_t f = 0; f < F; ++f) sums[g * F + f] += r * w[f];
    }
  }
}

// One block of places of members [first, last); `sums` has room for their features at one place.
template <class T>
LSDA_INLINE void head_adjoint(const HeadParams<T>& a, const T* y, T* x, T* sums, int64_t block, int64_t first,
                              int64_t last) {
  const int64_t F = a.features, S = a.places, from = block * kPlaceBlock, to = smaller(S, from + kPlaceBlock);
  for (int64_t m = first; m < last; ++m) {
    for (int64_t i = 0; i < (a.last ? 1 : F); ++i) {
      T* __restrict zero = x + m * F * S + (a.last ? from * F : i * S + from);
      for (int64_t s = 0; s < (to - from) * (a.last ? F : 1); ++s) zero[s] = T(0);
    }
  }
  for (int64_t s = from; s < to; ++s) {
    if (a.begin[s] == a.begin[s + 1]) continue;
    for (int64_t i = 0; i < (last - first) * F; ++i) sums[i] = T(0);
    for (int64_t e = a.begin[s]; e < a.begin[s + 1]; ++e) {
      const int64_t q = a.entry[e] / a.taps, t = a.entry[e] % a.taps;
      int64_t m = first;
      for (; m + kHeadMembers <= last; m += kHeadMembers) {
        head_rows<kHeadMembers>(a, y + m * a.values, sums + (m - first) * F, q, t);
      }
      for (; m < last; ++m) head_rows<1>(a, y + m * a.values, sums + (m - first) * F, q, t);
    }
    for (int64_t m = first; m < last; ++m) {
      const T* __restrict sum = sums + (m - first) * F;
      T* __restrict out = x + m * F * S + s * (a.last ? F : 1);
      for (int64_t f = 0; f < F; ++f) out[f * (a.last ? 1 : S)] = sum[f];
    }
  }
}

// What one of 16 CUDA lanes does: its part of the sums of rows [u, u + 4) of site q for members [first, first + G), in
// the order of `dots`. Beyond the end stand the last row and the last member once more.
template <class T, int G>
LSDA_HOST_DEVICE LSDA_INLINE void head_project_lane(const HeadParams<T>& a, const T* x, T (&sum)[4][G], int64_t q,
                                                    int64_t u, int64_t first, int64_t lane) {
  constexpr int64_t kLanes = 16;
  const int64_t F = a.features, S = a.places, size = a.taps * F, end = a.start[q + 1];
  const T *w[4], *from[G];
  for (int i = 0; i < 4; ++i) w[i] = a.weight + a.row[smaller(u + i, end - 1)] * size;
  for (int g = 0; g < G; ++g) from[g] = x + smaller(first + g, a.members - 1) * F * S;
  for (int i = 0; i < 4; ++i) {
    for (int g = 0; g < G; ++g) sum[i][g] = T(0);
  }
  const int32_t* neighbour = a.neighbour + q * a.taps;
  int64_t f = lane;
  for (int64_t i = lane; i < size; i += kLanes, f += kLanes) {
    for (; f >= F; f -= F) ++neighbour;
    const int64_t at = a.last ? *neighbour * F + f : f * S + *neighbour;
    T v[G];
    for (int g = 0; g < G; ++g) v[g] = from[g][at];
    for (int j = 0; j < 4; ++j) {
      const T row = w[j][i];
      for (int g = 0; g < G; ++g) sum[j][g] += row * v[g];
    }
  }
}

// What a CUDA thread does: feature f at place s of members [first, first + G), in the order of `head_rows`.
template <class T, int G>
LSDA_HOST_DEVICE LSDA_INLINE void head_adjoint_thread(const HeadParams<T>& a, const T* y, T* x, int64_t s, int64_t f,
                                                      int64_t first) {
  const int64_t F = a.features, S = a.places, size = a.taps * F;
  const T* from[G];
  for (int g = 0; g < G; ++g) from[g] = y + smaller(first + g, a.members - 1) * a.values;
  T sum[G] = {};
  for (int32_t e = a.begin[s]; e < a.begin[s + 1]; ++e) {
    const int32_t taps = static_cast<int32_t>(a.taps), q = a.entry[e] / taps, t = a.entry[e] % taps;
    const T* __restrict w = a.weight + t * F + f;
    const int32_t end = a.start[q + 1];
    int32_t u = a.start[q];
    for (; u + 4 <= end; u += 4) {
      const T w0 = w[a.row[u] * size], w1 = w[a.row[u + 1] * size];
      const T w2 = w[a.row[u + 2] * size], w3 = w[a.row[u + 3] * size];
      const int32_t o0 = a.output[u], o1 = a.output[u + 1], o2 = a.output[u + 2], o3 = a.output[u + 3];
      for (int g = 0; g < G; ++g) {
        const T* r = from[g];
        sum[g] += (r[o0] * w0 + r[o1] * w1) + (r[o2] * w2 + r[o3] * w3);
      }
    }
    for (; u < end; ++u) {
      const T row = w[a.row[u] * size];
      for (int g = 0; g < G; ++g) sum[g] += from[g][a.output[u]] * row;
    }
  }
  for (int g = 0; g < G && first + g < a.members; ++g) {
    x[(first + g) * F * S + (a.last ? s * F + f : f * S + s)] = sum[g];
  }
}

}  // namespace core
}  // namespace lsda
