// SPDX-License-Identifier: Apache-2.0
// Philox4x32-10 (Salmon et al. 2011, doi:10.1145/2063384.2063405), kWide counters side by side.
#pragma once

#include "core/base.h"

namespace lsda::core {

// Two vectors of AVX-512, so that one chain of multiplications runs while the other waits.
constexpr int64_t kWide = 32;

using Words = uint32_t[4][kWide];

LSDA_INLINE void philox(Words& c, uint32_t key0, uint32_t key1) {
  for (int round = 0; round < 10; ++round) {
#pragma omp simd
    for (int64_t i = 0; i < kWide; ++i) {
      const uint64_t even = uint64_t{0xD2511F53u} * c[0][i], odd = uint64_t{0xCD9E8D57u} * c[2][i];
      c[0][i] = static_cast<uint32_t>(odd >> 32) ^ c[1][i] ^ key0;
      c[2][i] = static_cast<uint32_t>(even >> 32) ^ c[3][i] ^ key1;
      c[1][i] = static_cast<uint32_t>(odd);
      c[3][i] = static_cast<uint32_t>(even);
    }
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
}

}  // namespace lsda::core
