// SPDX-License-Identifier: Apache-2.0
// lsda_fast._cpu: the operations on addresses and sizes. The ending _32 or _64 says what the addresses of real numbers
// point to, and _16 that those of images and tokens point to bfloat16.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <string>
#include <vector>

#include "bind/params.h"
#include "cpu/dispatch.h"
#include "cpu/ops.h"

namespace py = pybind11;

namespace {

using lsda::bind::Address;
using lsda::bind::at;

const std::vector<std::string> kIsaNames = {"baseline", "x86-64-v3", "x86-64-v4"};

std::string isa() { return kIsaNames[static_cast<size_t>(lsda::current_isa)]; }

std::vector<std::string> isas() {
  return {kIsaNames.begin(), kIsaNames.begin() + static_cast<int>(lsda::best_isa()) + 1};
}

void set_isa(const std::string& name) {
  const std::vector<std::string> known = isas();
  for (size_t i = 0; i < known.size(); ++i) {
    if (known[i] == name) {
      lsda::current_isa = static_cast<lsda::Isa>(i);
      return;
    }
  }
  throw py::value_error("instruction set " + name + " is not one of this processor");
}

py::dict build_info() {
  py::dict info;
  info["abi"] = lsda::kAbi;
  info["compiler"] = __VERSION__;
#ifdef _OPENMP
  info["openmp"] = _OPENMP;
#else
  info["openmp"] = 0;
#endif
  info["isas"] = isas();
  info["tile"] = lsda::kTile;
  info["columns"] = lsda::kColumns;
  return info;
}

template <class T>
void obs_project(Address y, Address x, Address index, Address weight, Address rank, int64_t members, int64_t cells,
                 int64_t observations, int64_t points, int threads) {
  lsda::cpu::obs_project<T>(
      {at<T>(y), at<T>(x), at<int32_t>(index), at<T>(weight), members, cells, observations, points, at<int32_t>(rank)},
      threads);
}

template <class T>
void obs_residual(Address r, Address slope, Address cost, Address x, Address index, Address weight, Address rank,
                  Address target, Address precision, Address noise, int kind, double number, int64_t members,
                  int64_t cells, int64_t observations, int64_t points, int threads) {
  lsda::cpu::obs_residual<T>(
      {{at<T>(r), at<T>(x), at<int32_t>(index), at<T>(weight), members, cells, observations, points, at<int32_t>(rank)},
       at<T>(slope),
       nullptr,
       at<T>(target),
       at<T>(precision),
       at<T>(noise),
       static_cast<lsda::Robust>(kind),
       number},
      at<T>(cost), threads);
}

template <class T>
void obs_adjoint(Address x, Address r, Address cell, Address length, Address observation, Address weight, Address tile,
                 Address row, int64_t members, int64_t cells, int64_t observations, int threads) {
  lsda::cpu::obs_adjoint<T>({at<T>(x), at<T>(r), at<int32_t>(cell), at<int32_t>(length), at<int32_t>(observation),
                             at<T>(weight), at<int64_t>(tile), members, cells, observations, at<int32_t>(row)},
                            threads);
}

template <class T>
void head(bool transpose, Address x, Address y, Address weight, Address neighbour, Address start, Address row,
          Address output, Address begin, Address entry, int64_t members, int64_t features, int64_t places,
          int64_t sites, int64_t taps, int64_t values, bool last, int threads) {
  const auto a = lsda::bind::head_params<T>(weight, neighbour, start, row, output, begin, entry, members, features,
                                            places, sites, taps, values, last);
  if (transpose) return lsda::cpu::head_adjoint<T>(a, at<T>(y), at<T>(x), threads);
  lsda::cpu::head_project<T>(a, at<T>(x), at<T>(y), threads);
}

template <class T>
void sampler_step(Address out, const std::vector<Address>& terms, const std::vector<double>& coefficients, double scale,
                  Address member, int64_t members, int64_t size, Address seed, uint32_t step, uint32_t stream,
                  int threads) {
  if (terms.size() > lsda::kTerms || terms.size() != coefficients.size()) throw py::value_error("terms");
  lsda::SamplerParams<T> a = {};
  a.out = at<T>(out);
  for (size_t j = 0; j < terms.size(); ++j) {
    a.term[j] = at<T>(terms[j]);
    a.coefficient[j] = static_cast<T>(coefficients[j]);
  }
  a.scale = static_cast<T>(scale);
  a.member = at<int64_t>(member);
  a.members = members;
  a.size = size;
  a.terms = static_cast<int64_t>(terms.size());
  a.seed = at<int64_t>(seed);
  a.step = step;
  a.stream = stream;
  const py::gil_scoped_release released;
  lsda::cpu::sampler_step(a, threads);
}

template <class T>
void cg_step(Address x, Address r, Address p, Address rr, Address x0, Address r0, Address p0, Address rr0, Address Ap,
             Address limit, int64_t members, int64_t size, int threads) {
  lsda::cpu::cg_step(lsda::bind::cg_params<T>(x, r, p, rr, x0, r0, p0, rr0, Ap, limit, members, size), threads);
}

template <class T>
void adam_step(Address v, Address m, Address s, Address v0, Address m0, Address s0, Address gradient, double rate,
               double spread, double beta1, double beta2, double eps, double decay, int64_t size, int threads) {
  lsda::cpu::adam_step(
      lsda::bind::adam_params<T>(v, m, s, v0, m0, s0, gradient, rate, spread, beta1, beta2, eps, decay, size), threads);
}

template <class T, class S>
void norm(int product, Address out, Address kept, Address t, Address x, Address a, Address b, int64_t members,
          int64_t share, int64_t groups, int64_t width, int layout, bool silu, double eps, int64_t rows,
          int64_t columns, int64_t margin, bool periodic, bool north, bool south, bool torus, int threads) {
  lsda::cpu::norm<T, S>({at<S>(out),
                         at<T>(kept),
                         at<S>(t),
                         at<S>(x),
                         at<T>(a),
                         at<T>(b),
                         members,
                         share,
                         groups,
                         width,
                         {rows, columns, margin, periodic, north, south, torus},
                         eps,
                         static_cast<lsda::Layout>(layout),
                         silu},
                        static_cast<lsda::Product>(product), threads);
}

template <class T>
void norm_conv(int product, Address out, Address kept, Address t, Address x, Address a, Address b, Address weight,
               Address bias, Address add, Address scratch, int64_t members, int64_t groups, int64_t width,
               int64_t filters, bool silu, bool bare, double eps, int64_t rows, int64_t columns, int64_t margin,
               bool periodic, bool north, bool south, bool torus, int threads) {
  lsda::cpu::norm_conv<T>({{at<T>(out),
                            at<T>(kept),
                            at<T>(t),
                            at<T>(x),
                            at<T>(a),
                            at<T>(b),
                            members,
                            members,
                            groups,
                            width,
                            {rows, columns, margin, periodic, north, south, torus},
                            eps,
                            lsda::Layout::last,
                            silu},
                           at<T>(out),
                           at<T>(t),
                           at<T>(weight),
                           at<T>(bias),
                           at<T>(add),
                           filters,
                           at<T>(scratch),
                           bare},
                          static_cast<lsda::Product>(product), threads);
}

template <class T>
void gated_norm(int product, Address first, Address second, Address left, Address right, Address y, Address gate,
                Address a, Address b, int64_t rows, int64_t share, int64_t channels, double eps, int threads) {
  lsda::cpu::gated_norm<T>({at<T>(first), at<T>(second), at<T>(left), at<T>(right), at<T>(y), at<T>(gate), at<T>(a),
                            at<T>(b), rows, share, channels, eps},
                           static_cast<lsda::Product>(product), threads);
}

template <class T>
void geo_pad(Address out, Address in, int64_t images, int64_t rows, int64_t columns, int64_t pixel, int64_t margin,
             bool periodic, bool north, bool south, bool torus, int threads) {
  lsda::cpu::geo_pad<T>({at<T>(out), at<T>(in), images, pixel, {rows, columns, margin, periodic, north, south, torus}},
                        threads);
}

template <class T>
void geo_fold(Address out, Address in, int64_t images, int64_t rows, int64_t columns, int64_t pixel, int64_t margin,
              bool periodic, bool north, bool south, bool torus, int threads) {
  lsda::cpu::geo_fold<T>({at<T>(out), at<T>(in), images, pixel, {rows, columns, margin, periodic, north, south, torus}},
                         threads);
}

template <class T>
void restricted_step(Address x, Address r, Address p, Address rr, Address x0, Address r0, Address p0, Address rr0,
                     Address Gw, Address f, Address limit, int64_t members, int64_t size, int threads) {
  lsda::cpu::restricted_step<T>({at<T>(x), at<T>(r), at<T>(p), at<T>(rr), at<T>(x0), at<T>(r0), at<T>(p0), at<T>(rr0),
                                 at<T>(Gw), at<T>(f), at<T>(limit), members, size},
                                threads);
}

// project: index, weight, rank; adjoint: cell, length, observation, weight, tile, row; head: weight, neighbour, ...,
// entry; zonal: analysis, ..., after, right and left float where they are narrow. Sizes: members, observations, cells,
// points; places, features, sites, taps; rows, columns, waves, modes.
template <class T>
void restricted_solve(Address x, Address f, Address rr, Address limit, Address slope, double factor, int64_t iterations,
                      const std::array<Address, 3>& project, const std::array<Address, 6>& adjoint,
                      const std::array<Address, 7>& head, const std::array<Address, 8>& zonal,
                      const std::array<int64_t, 12>& sizes, bool narrow, int threads) {
  const auto [members, observations, cells, points, places, features, sites, taps, rows, columns, waves, modes] = sizes;
  const lsda::SolveParams<T> a = {
      at<T>(x),
      at<T>(f),
      at<T>(rr),
      at<T>(limit),
      at<T>(slope),
      factor,
      iterations,
      members,
      observations,
      {nullptr, nullptr, at<int32_t>(project[0]), at<T>(project[1]), members, cells, observations, points,
       at<int32_t>(project[2])},
      {nullptr, nullptr, at<int32_t>(adjoint[0]), at<int32_t>(adjoint[1]), at<int32_t>(adjoint[2]), at<T>(adjoint[3]),
       at<int64_t>(adjoint[4]), members, cells, observations, at<int32_t>(adjoint[5])},
      lsda::bind::head_params<T>(head[0], head[1], head[2], head[3], head[4], head[5], head[6], members, features,
                                 places, sites, taps, cells, true),
      {nullptr, nullptr, at<T>(zonal[0]), at<T>(zonal[1]), at<void>(zonal[2]), at<T>(zonal[3]), at<void>(zonal[4]),
       at<T>(zonal[5]), at<T>(zonal[6]), at<T>(zonal[7]), members, rows, columns, features, waves, modes, true, narrow,
       nullptr}};
  const py::gil_scoped_release released;
  lsda::cpu::restricted_solve(a, threads);
}

template <class T>
void shuffle(Address out, Address in, Address weight, Address bias, int64_t members, int64_t rows, int64_t columns,
             int64_t channels, int64_t features, int64_t patch, bool adjoint, int threads) {
  lsda::cpu::shuffle<T>(
      {at<T>(out), at<T>(in), at<T>(weight), at<T>(bias), members, rows, columns, channels, features, patch, adjoint},
      threads);
}

template <class T>
void zonal(Address out, Address x, Address analysis, Address synthesis, Address right, Address middle, Address left,
           Address floor, Address before, Address after, Address scratch, int64_t members, int64_t rows,
           int64_t columns, int64_t channels, int64_t waves, int64_t modes, bool full, bool narrow, int threads) {
  lsda::cpu::zonal<T>({at<T>(out), at<T>(x), at<T>(analysis), at<T>(synthesis), at<void>(right), at<T>(middle),
                       at<void>(left), at<T>(floor), at<T>(before), at<T>(after), members, rows, columns, channels,
                       waves, modes, full, narrow, at<T>(scratch)},
                      threads);
}

// What norm_conv and zonal need as `scratch`, in numbers.
int64_t norm_conv_scratch(int64_t channels, int64_t filters, int64_t rows, int64_t columns, int64_t margin,
                          bool periodic, bool north, bool south, bool torus, int threads) {
  return lsda::core::between_size({rows, columns, margin, periodic, north, south, torus}, channels, filters, threads);
}

int64_t zonal_scratch(int64_t members, int64_t rows, int64_t columns, int64_t channels, int64_t waves, int64_t modes) {
  lsda::ZonalParams<float> sizes = {};
  sizes.members = members;
  sizes.rows = rows;
  sizes.columns = columns;
  sizes.channels = channels;
  sizes.waves = waves;
  sizes.modes = modes;
  return lsda::zonal_scratch(sizes);
}

void philox(Address words, Address counters, int64_t count, uint64_t key) {
  lsda::cpu::philox(at<uint32_t>(words), at<uint32_t>(counters), count, key);
}

}  // namespace

PYBIND11_MODULE(_cpu, module) {
  const auto unlocked = py::call_guard<py::gil_scoped_release>();
  module.def("build_info", &build_info);
  module.def("isa", &isa);
  module.def("set_isa", &set_isa);
  module.def("obs_project_32", &obs_project<float>, unlocked);
  module.def("obs_project_64", &obs_project<double>, unlocked);
  module.def("obs_residual_32", &obs_residual<float>, unlocked);
  module.def("obs_residual_64", &obs_residual<double>, unlocked);
  module.def("obs_adjoint_32", &obs_adjoint<float>, unlocked);
  module.def("obs_adjoint_64", &obs_adjoint<double>, unlocked);
  module.def("head_32", &head<float>, unlocked);
  module.def("head_64", &head<double>, unlocked);
  module.def("sampler_step_32", &sampler_step<float>);
  module.def("sampler_step_64", &sampler_step<double>);
  module.def("cg_step_32", &cg_step<float>, unlocked);
  module.def("cg_step_64", &cg_step<double>, unlocked);
  module.def("adam_step_32", &adam_step<float>, unlocked);
  module.def("adam_step_64", &adam_step<double>, unlocked);
  module.def("norm_16", &norm<float, lsda::Bfloat16>, unlocked);
  module.def("norm_32", &norm<float, float>, unlocked);
  module.def("norm_64", &norm<double, double>, unlocked);
  module.def("norm_conv_32", &norm_conv<float>, unlocked);
  module.def("norm_conv_64", &norm_conv<double>, unlocked);
  module.def("norm_conv_scratch", &norm_conv_scratch, unlocked);
  module.def("gated_norm_32", &gated_norm<float>, unlocked);
  module.def("gated_norm_64", &gated_norm<double>, unlocked);
  module.def("geo_pad_16", &geo_pad<uint16_t>, unlocked);
  module.def("geo_pad_32", &geo_pad<uint32_t>, unlocked);
  module.def("geo_pad_64", &geo_pad<uint64_t>, unlocked);
  module.def("geo_fold_32", &geo_fold<float>, unlocked);
  module.def("geo_fold_64", &geo_fold<double>, unlocked);
  module.def("restricted_step_32", &restricted_step<float>, unlocked);
  module.def("restricted_step_64", &restricted_step<double>, unlocked);
  module.def("restricted_solve_32", &restricted_solve<float>);
  module.def("restricted_solve_64", &restricted_solve<double>);
  module.def("shuffle_32", &shuffle<float>, unlocked);
  module.def("shuffle_64", &shuffle<double>, unlocked);
  module.def("zonal_32", &zonal<float>, unlocked);
  module.def("zonal_64", &zonal<double>, unlocked);
  module.def("zonal_scratch", &zonal_scratch, unlocked);
  module.def("philox", &philox, unlocked);
}
