// SPDX-License-Identifier: Apache-2.0
// The operations on a GPU, each for float and double: one launch on the caller's stream, or two. Nothing is allocated
// and nothing waits, so that CUDA graphs capture them. They give back null, or what CUDA says against the launch.
#pragma once

#include "core/adam_step.h"
#include "core/cg_step.h"
#include "core/head.h"
#include "core/obs_columns.h"
#include "core/obs_residual.h"

namespace lsda::cuda {

struct Stream {
  int device;
  void* handle;
};

using Error = const char*;

template <class T>
Error obs_project(const ProjectParams<T>& a, Stream stream) noexcept;

// Observations of a partial sum of a cost.
constexpr int kResidualBlock = 256;

// With the cost (M) of each member; `twice` is (M, blocks of kResidualBlock observations), and the stencil in order.
template <class T>
Error obs_residual(const ResidualParams<T>& a, T* cost, Stream stream) noexcept;

template <class T>
Error obs_adjoint(const ColumnsParams<T>& a, Stream stream) noexcept;

// x = features (M, F, S) to y = values (M, U).
template <class T>
Error head_project(const HeadParams<T>& a, const T* x, T* y, Stream stream) noexcept;

// y = values (M, U) to x = features (M, F, S).
template <class T>
Error head_adjoint(const HeadParams<T>& a, const T* y, T* x, Stream stream) noexcept;

template <class T>
Error cg_step(const CgParams<T>& a, Stream stream) noexcept;

template <class T>
Error adam_step(const AdamParams<T>& a, Stream stream) noexcept;

// Null where CUDA finds a GPU, or what it says against the driver.
Error obstacle() noexcept;

// The version of nvcc, and what it compiled for: compute capabilities times 10, the last as PTX too.
extern const char* const kNvcc;
extern const int kArchitectures[];
extern const int kArchitectureCount;

}  // namespace lsda::cuda
