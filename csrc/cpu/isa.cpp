// SPDX-License-Identifier: Apache-2.0
#include "cpu/dispatch.h"

namespace lsda {

Isa best_isa() noexcept {
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool v3 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi") &&
                  __builtin_cpu_supports("bmi2");
  const bool v4 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                  __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
                  __builtin_cpu_supports("avx512vl");
  if (v3) return v4 ? Isa::v4 : Isa::v3;
#endif
  return Isa::baseline;
}

Isa current_isa = best_isa();

}  // namespace lsda
