// SPDX-License-Identifier: Apache-2.0
// One caller of an algorithm per instruction set, chosen at run time. Explicit rather than by target_clones, so that a
// test can force each; contraction is off (setup.py), so that all of them give the same bits.
#pragma once

#include "core/base.h"

namespace lsda {

enum class Isa : int { baseline, v3, v4 };

// The best that this processor has.
Isa best_isa() noexcept;

// What is used: the best one, unless forced.
extern Isa current_isa;

}  // namespace lsda

#if defined(__x86_64__)
#define LSDA_TARGET_V3 __attribute__((target("arch=x86-64-v3")))
#define LSDA_TARGET_V4 __attribute__((target("arch=x86-64-v4")))
#define LSDA_CHOOSE(NAME, ...)             \
  switch (current_isa) {                   \
    case Isa::v4:                          \
      return NAME##_v4(__VA_ARGS__);       \
    case Isa::v3:                          \
      return NAME##_v3(__VA_ARGS__);       \
    case Isa::baseline:                    \
      return NAME##_baseline(__VA_ARGS__); \
  }                                        \
  __builtin_unreachable()
#else
#define LSDA_TARGET_V3
#define LSDA_TARGET_V4
#define LSDA_CHOOSE(NAME, ...) return NAME##_baseline(__VA_ARGS__)
#endif

// dispatch::NAME(a...) is core::NAME(a...) with the instructions of current_isa.
#define LSDA_DISPATCH(NAME)                                        \
  namespace dispatch {                                             \
  template <class... A>                                            \
  [[maybe_unused]] static auto NAME##_baseline(A&... a) {          \
    return core::NAME(a...);                                       \
  }                                                                \
  template <class... A>                                            \
  [[maybe_unused]] LSDA_TARGET_V3 static auto NAME##_v3(A&... a) { \
    return core::NAME(a...);                                       \
  }                                                                \
  template <class... A>                                            \
  [[maybe_unused]] LSDA_TARGET_V4 static auto NAME##_v4(A&... a) { \
    return core::NAME(a...);                                       \
  }                                                                \
  template <class... A>                                            \
  static auto NAME(A&... a) -> decltype(core::NAME(a...)) {        \
    LSDA_CHOOSE(NAME, a...);                                       \
  }                                                                \
  }
