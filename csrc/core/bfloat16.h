// SPDX-License-Identifier: Apache-2.0
// bfloat16, the upper half of a float: numbers are kept so, and worked on as floats.
#pragma once

#include <cstring>

#include "core/base.h"

namespace lsda {

struct Bfloat16 {
  uint16_t bits;

  // The nearest one; of two as near, that whose last bit is 0. NaN stays NaN. Assigned, not constructed: GCC makes no
  // vectors of a loop that has a temporary of a class.
  LSDA_INLINE Bfloat16& operator=(float x) {
    uint32_t whole;
    std::memcpy(&whole, &x, sizeof whole);
    whole += 0x7fffu + (whole >> 16 & 1u);
    bits = static_cast<uint16_t>(x != x ? 0x7fc0u : whole >> 16);
    return *this;
  }

  LSDA_INLINE operator float() const {
    const uint32_t whole = static_cast<uint32_t>(bits) << 16;
    float x;
    std::memcpy(&x, &whole, sizeof x);
    return x;
  }
};

}  // namespace lsda
