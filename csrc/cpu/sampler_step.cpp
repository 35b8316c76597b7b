// SPDX-License-Identifier: Apache-2.0
#include "cpu/dispatch.h"
#include "cpu/ops.h"
#include "cpu/parallel.h"

namespace lsda {

LSDA_DISPATCH(sampler_step)
LSDA_DISPATCH(philox)

namespace cpu {

template <class T>
void sampler_step(const SamplerParams<T>& a, int threads) noexcept {
  const int64_t blocks = blocks_of(a.size);
  parallel_for(a.members * blocks, useful_threads(threads, a.members * a.size), [&](int64_t task) {
    const int64_t m = task / blocks, block = task % blocks;
    dispatch::sampler_step(a, m, block);
  });
}

template void sampler_step(const SamplerParams<float>&, int) noexcept;
template void sampler_step(const SamplerParams<double>&, int) noexcept;

void philox(uint32_t* words, const uint32_t* counters, int64_t count, uint64_t key) noexcept {
  const uint32_t key0 = static_cast<uint32_t>(key), key1 = static_cast<uint32_t>(key >> 32);
  for (int64_t first = 0; first < count; first += core::kWide) {
    const int64_t n = smaller(core::kWide, count - first);
    core::Words c = {};
    for (int64_t row = 0; row < 4; ++row) {
      for (int64_t i = 0; i < n; ++i) c[row][i] = counters[row * count + first + i];
    }
    dispatch::philox(c, key0, key1);
    for (int64_t row = 0; row < 4; ++row) {
      for (int64_t i = 0; i < n; ++i) words[row * count + first + i] = c[row][i];
    }
  }
}

}  // namespace cpu
}  // namespace lsda
