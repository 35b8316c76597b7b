// SPDX-License-Identifier: Apache-2.0
// The operations, each for float and double. Sizes are checked by the caller; nothing throws.
#pragma once

#include "core/adam_step.h"
#include "core/cg_step.h"
#include "core/gated_norm.h"
#include "core/geo_pad.h"
#include "core/head.h"
#include "core/norm.h"
#include "core/norm_conv.h"
#include "core/obs_adjoint.h"
#include "core/obs_residual.h"
#include "core/restricted_solve.h"
#include "core/restricted_step.h"
#include "core/sampler_step.h"
#include "core/shuffle.h"
#include "core/zonal.h"

namespace lsda::cpu {

template <class T>
void obs_project(const ProjectParams<T>& a, int threads);

// With the cost (M) of each member.
template <class T>
void obs_residual(ResidualParams<T> a, T* cost, int threads);

template <class T>
void obs_adjoint(const AdjointParams<T>& a, int threads);

// x = features (M, F, S) to y = values (M, U).
template <class T>
void head_project(const HeadParams<T>& a, const T* x, T* y, int threads) noexcept;

// y = values (M, U) to x = features (M, F, S).
template <class T>
void head_adjoint(const HeadParams<T>& a, const T* y, T* x, int threads) noexcept;

template <class T>
void sampler_step(const SamplerParams<T>& a, int threads) noexcept;

template <class T>
void cg_step(const CgParams<T>& a, int threads) noexcept;

template <class T>
void restricted_step(const RestrictedParams<T>& a, int threads) noexcept;

template <class T>
void restricted_solve(const SolveParams<T>& a, int threads);

template <class T>
void adam_step(const AdamParams<T>& a, int threads) noexcept;

// Of bfloat16 too, in float.
template <class T, class S>
void norm(const NormParams<T, S>& a, Product product, int threads) noexcept;

// Called by norm_conv alone, which has at most as many images at a time as threads: the weight once, then any images.
template <class T>
void conv_weight(const ConvParams<T>& a, int threads) noexcept;
template <class T>
void conv(const ConvParams<T>& a, int threads) noexcept;

template <class T>
void norm_conv(const NormConvParams<T>& a, Product product, int threads) noexcept;

template <class T>
void gated_norm(const GatedParams<T>& a, Product product, int threads) noexcept;

template <class T>
void shuffle(const ShuffleParams<T>& a, int threads) noexcept;

template <class T>
void zonal(const ZonalParams<T>& a, int threads) noexcept;

// Numbers of any kind, by their size.
template <class T>
void geo_pad(const PadParams<T>& a, int threads) noexcept;

template <class T>
void geo_fold(const PadParams<T>& a, int threads) noexcept;

// (4, count) counters to (4, count) words.
void philox(uint32_t* words, const uint32_t* counters, int64_t count, uint64_t key) noexcept;

}  // namespace lsda::cpu
