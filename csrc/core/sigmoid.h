// SPDX-License-Identifier: Apache-2.0
// The logistic function and SiLU. exp is reduced by Cody and Waite's two-part logarithm of 2; the polynomials are those
// of Cephes in float and of fdlibm in double. Beyond kRange the logistic function is below the last bit of what it
// meets, and the argument stays there; NaN passes.
#pragma once

#include <cstring>

#include "core/base.h"

namespace lsda::core {

template <class T>
struct Exponential;

template <>
struct Exponential<float> {
  static constexpr float kRange = 87.0f;

  // exp x, |x| <= kRange. Adding 1.5 2^23 rounds, and leaves the whole number in the last bits.
  static LSDA_INLINE float of(float x) {
    const float shifted = x * 1.44269504088896341f + 12582912.0f, k = shifted - 12582912.0f;
    const float r = (x - k * 0.693359375f) + k * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    uint32_t bits;
    std::memcpy(&bits, &shifted, sizeof bits);
    bits = (bits + 127u) << 23;
    float power;
    std::memcpy(&power, &bits, sizeof power);
    return (p * (r * r) + r + 1.0f) * power;
  }
};

template <>
struct Exponential<double> {
  static constexpr double kRange = 700.0;

  // t and 2^k of exp x = (1 + t) 2^k, |x| <= kRange: no digit of a small t = expm1 x is lost where k = 0.
  static LSDA_HOST_DEVICE LSDA_INLINE void parts(double x, double& t, double& power) {
    const double shifted = x * 1.44269504088896338700 + 6755399441055744.0, k = shifted - 6755399441055744.0;
    const double high = x - k * 6.93147180369123816490e-01, low = k * 1.90821492927058770002e-10;
    const double r = high - low, z = r * r;
    const double c = r - z * (1.66666666666666019037e-01 +
                              z * (-2.77777777770155933842e-03 +
                                   z * (6.61375632143793436117e-05 +
                                        z * (-1.65339022054652515390e-06 + z * 4.13813679705723846039e-08))));
    uint64_t bits;
    std::memcpy(&bits, &shifted, sizeof bits);
    bits = (bits + 1023u) << 52;
    std::memcpy(&power, &bits, sizeof power);
    t = -((low - (r * c) / (2.0 - c)) - high);
  }

  static LSDA_HOST_DEVICE LSDA_INLINE double of(double x) {
    double t, power;
    parts(x, t, power);
    return (1.0 + t) * power;
  }
};

template <class T>
LSDA_INLINE T logistic(T x) {
  constexpr T range = Exponential<T>::kRange;
  T y = -x;
  y = y > range ? range : y;
  y = y < -range ? -range : y;
  return T(1) / (T(1) + Exponential<T>::of(y));
}

template <class T>
LSDA_INLINE T silu(T x) {
  return x * logistic(x);
}

template <class T>
LSDA_INLINE T silu_slope(T x) {
  const T s = logistic(x);
  return s * (T(1) + x * (T(1) - s));
}

}  // namespace lsda::core
