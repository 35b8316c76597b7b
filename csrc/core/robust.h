// SPDX-License-Identifier: Apache-2.0
// Robust costs of a departure d, see kernels/robust.py: the root of the weight rho'(d) / d, and 2 rho(d), in float64.
#pragma once

#include "core/log.h"
#include "core/sigmoid.h"

namespace lsda {

enum class Robust : int { gaussian, huber, variational };

namespace core {

template <Robust kind>
struct Cost;

template <>
struct Cost<Robust::gaussian> {
  static LSDA_HOST_DEVICE LSDA_INLINE void of(double d, double, double& root, double& twice) {
    root = 1.0;
    twice = d * d;
  }
};

template <>
struct Cost<Robust::huber> {
  static LSDA_HOST_DEVICE LSDA_INLINE void of(double d, double delta, double& root, double& twice) {
    const double size = __builtin_fabs(d);
    const bool outside = size > delta;
    root = __builtin_sqrt(delta / (outside ? size : delta));
    twice = outside ? delta * (2.0 * size - delta) : d * d;
  }
};

// With E = exp(-d^2 / 2): w = E / (gamma + E), rho = -log((gamma + E) / (1 + gamma)), in the second of which the
// argument of the logarithm less 1 is (E - 1) / (1 + gamma).
template <>
struct Cost<Robust::variational> {
  static LSDA_HOST_DEVICE LSDA_INLINE void of(double d, double gamma, double& root, double& twice) {
    constexpr double range = Exponential<double>::kRange;
    double x = -0.5 * d * d;
    x = x < -range ? -range : x;
    double t, power, f, k;
    Exponential<double>::parts(x, t, power);
    const double E = (1.0 + t) * power;
    root = __builtin_sqrt(E / (gamma + E));
    log_parts((gamma + E) / (1.0 + gamma), f, k);
    const bool near = power == 1.0;
    f = near ? t / (1.0 + gamma) : f;
    k = near ? 0.0 : k;
    twice = -2.0 * log_of_parts(f, k);
  }
};

}  // namespace core
}  // namespace lsda
