// SPDX-License-Identifier: Apache-2.0
// First in a file whose multiplications and additions may become one instruction: matrix products. x86-64-v3 and v4
// have it, and so give the same bits; the baseline has not, gives others, and is not asked by Python.
#if defined(__clang__)
#pragma clang fp contract(fast)
#else
#pragma GCC optimize("fp-contract=fast")
#endif
