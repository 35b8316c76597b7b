// SPDX-License-Identifier: Apache-2.0
// log by fdlibm's polynomial, right to 1 ulp, in instructions that any vector has.
#pragma once

#include <cstring>

#include "core/base.h"

namespace lsda::core {

LSDA_HOST_DEVICE LSDA_INLINE double as_double(uint64_t bits) {
  double value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

LSDA_HOST_DEVICE LSDA_INLINE uint64_t as_bits(double value) {
  uint64_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

// A whole number below 2^52 as a double: no instruction converts 64-bit integers before AVX-512.
LSDA_HOST_DEVICE LSDA_INLINE double to_double(uint64_t whole) {
  return as_double(whole | 0x4330000000000000u) - 4503599627370496.0;
}

// log((1 + f) 2^k) for sqrt(1/2) <= 1 + f <= sqrt(2): no digit of a small f is lost where k = 0.
LSDA_HOST_DEVICE LSDA_INLINE double log_of_parts(double f, double k) {
  const double s = f / (2.0 + f), z = s * s, w = z * z, half = 0.5 * f * f;
  const double even = w * (3.999999999940941908e-01 + w * (2.222219843214978396e-01 + w * 1.531383769920937332e-01));
  const double odd =
      z * (6.666666666666735130e-01 +
           w * (2.857142874366239149e-01 + w * (1.818357216161805012e-01 + w * 1.479819860511658591e-01)));
  return s * (half + even + odd) + k * 1.90821492927058770002e-10 - half + f + k * 6.93147180369123816490e-01;
}

// f and k of a positive x.
LSDA_HOST_DEVICE LSDA_INLINE void log_parts(double x, double& f, double& k) {
  const uint64_t bits = as_bits(x), bias = uint64_t{1024} << 52;
  const uint64_t exponent = (bits - 0x3FE6A09E00000000u + bias) >> 52;  // + 1024, of x over sqrt(1/2)
  k = to_double(exponent) - 1024.0;
  f = as_double(bits - ((exponent << 52) - bias)) - 1.0;
}

LSDA_HOST_DEVICE LSDA_INLINE double log_of(double x) {
  double f, k;
  log_parts(x, f, k);
  return log_of_parts(f, k);
}

}  // namespace lsda::core
