// SPDX-License-Identifier: Apache-2.0
// Random memory of exactly its size, and what to say when a value is wrong.
#pragma once

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <memory>
#include <random>

#include "core/bfloat16.h"
#include "cpu/dispatch.h"

inline std::mt19937_64 generator(0);

inline void expect(bool right, const char* what) {
  if (right) return;
  std::printf("%s is wrong on instruction set %d\n", what, static_cast<int>(lsda::current_isa));
  std::exit(1);
}

template <class T>
T nan() {
  return std::numeric_limits<T>::quiet_NaN();
}

template <>
inline lsda::Bfloat16 nan() {
  return {0x7fc0};
}

// Memory of its own for every vector, so that a step outside is seen; outputs begin as NaN.
template <class T>
struct Block {
  explicit Block(int64_t n, T value = nan<T>()) : size(n), data(new T[static_cast<size_t>(n)]) {
    for (int64_t i = 0; i < n; ++i) data[i] = value;
  }
  T& operator[](int64_t i) { return data[i]; }
  T* get() { return data.get(); }
  int64_t size;
  std::unique_ptr<T[]> data;
};

template <class T>
Block<T> random(int64_t n) {
  std::normal_distribution<double> normal;
  Block<T> block(n);
  for (int64_t i = 0; i < n; ++i) block[i] = static_cast<decltype(+T{})>(normal(generator));
  return block;
}

// Of bfloat16 the two roundings that a number may have had.
template <class T>
double tolerance() {
  return 64 * std::numeric_limits<T>::epsilon();
}

template <>
inline double tolerance<lsda::Bfloat16>() {
  return 1.0 / 128;
}

template <class T>
bool within(double a, double b, double scale) {
  return std::abs(a - b) <= tolerance<T>() * (scale + std::abs(b));
}

template <class T>
bool close(T a, double b, double scale = 1.0) {
  return within<T>(static_cast<double>(a), b, scale);
}
