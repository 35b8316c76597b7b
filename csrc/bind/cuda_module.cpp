// SPDX-License-Identifier: Apache-2.0
// lsda_fast._cuda: the operations on addresses of a GPU, its number and a stream. The ending _32 or _64 says what the
// addresses of real numbers point to. Nothing here needs a driver to be loaded.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <stdexcept>
#include <string>
#include <vector>

#include "bind/params.h"
#include "cuda/ops.h"

namespace py = pybind11;

namespace {

using lsda::bind::Address;
using lsda::bind::at;

lsda::cuda::Stream on(int device, Address stream) { return {device, at<void>(stream)}; }

void check(const char* name, lsda::cuda::Error error) {
  if (error) throw std::runtime_error(std::string(name) + " was not launched: " + error);
}

py::dict build_info() {
  py::dict info;
  info["abi"] = lsda::kAbi;
  info["compiler"] = __VERSION__;
  info["nvcc"] = lsda::cuda::kNvcc;
  info["architectures"] =
      std::vector<int>(lsda::cuda::kArchitectures, lsda::cuda::kArchitectures + lsda::cuda::kArchitectureCount);
  info["block"] = lsda::cuda::kResidualBlock;
  return info;
}

std::string obstacle() {
  const lsda::cuda::Error error = lsda::cuda::obstacle();
  return error ? error : "";
}

template <class T>
void obs_project(Address y, Address x, Address index, Address weight, int64_t members, int64_t cells,
                 int64_t observations, int64_t points, int device, Address stream) {
  lsda::ProjectParams<T> a = {};
  a.y = at<T>(y);
  a.x = at<T>(x);
  a.index = at<int32_t>(index);
  a.weight = at<T>(weight);
  a.members = members;
  a.cells = cells;
  a.observations = observations;
  a.points = points;
  check("obs_project", lsda::cuda::obs_project(a, on(device, stream)));
}

template <class T>
void obs_residual(Address r, Address slope, Address cost, Address twice, Address x, Address index, Address weight,
                  Address target, Address precision, Address noise, int kind, double number, int64_t members,
                  int64_t cells, int64_t observations, int64_t points, int device, Address stream) {
  const lsda::ResidualParams<T> a = {
      {at<T>(r), at<T>(x), at<int32_t>(index), at<T>(weight), members, cells, observations, points},
      at<T>(slope),
      at<double>(twice),
      at<T>(target),
      at<T>(precision),
      at<T>(noise),
      static_cast<lsda::Robust>(kind),
      number};
  check("obs_residual", lsda::cuda::obs_residual(a, at<T>(cost), on(device, stream)));
}

template <class T>
void obs_adjoint(Address x, Address r, Address start, Address observation, Address weight, int64_t members,
                 int64_t cells, int64_t observations, int device, Address stream) {
  const lsda::ColumnsParams<T> a = {at<T>(x), at<T>(r), at<int32_t>(start), at<int32_t>(observation), at<T>(weight),
                                    members,  cells,    observations};
  check("obs_adjoint", lsda::cuda::obs_adjoint(a, on(device, stream)));
}

template <class T>
void head(bool transpose, Address x, Address y, Address weight, Address neighbour, Address start, Address row,
          Address output, Address begin, Address entry, int64_t members, int64_t features, int64_t places,
          int64_t sites, int64_t taps, int64_t values, bool last, int device, Address stream) {
  const auto a = lsda::bind::head_params<T>(weight, neighbour, start, row, output, begin, entry, members, features,
                                            places, sites, taps, values, last);
  if (transpose) return check("head_adjoint", lsda::cuda::head_adjoint(a, at<T>(y), at<T>(x), on(device, stream)));
  check("head_project", lsda::cuda::head_project(a, at<T>(x), at<T>(y), on(device, stream)));
}

template <class T>
void cg_step(Address x, Address r, Address p, Address rr, Address x0, Address r0, Address p0, Address rr0, Address Ap,
             Address limit, int64_t members, int64_t size, int device, Address stream) {
  const auto a = lsda::bind::cg_params<T>(x, r, p, rr, x0, r0, p0, rr0, Ap, limit, members, size);
  check("cg_step", lsda::cuda::cg_step(a, on(device, stream)));
}

template <class T>
void adam_step(Address v, Address m, Address s, Address v0, Address m0, Address s0, Address gradient, double rate,
               double spread, double beta1, double beta2, double eps, double decay, int64_t size, int device,
               Address stream) {
  const auto a =
      lsda::bind::adam_params<T>(v, m, s, v0, m0, s0, gradient, rate, spread, beta1, beta2, eps, decay, size);
  check("adam_step", lsda::cuda::adam_step(a, on(device, stream)));
}

}  // namespace

PYBIND11_MODULE(_cuda, module) {
  module.def("build_info", &build_info);
  module.def("obstacle", &obstacle);
  module.def("obs_project_32", &obs_project<float>);
  module.def("obs_project_64", &obs_project<double>);
  module.def("obs_residual_32", &obs_residual<float>);
  module.def("obs_residual_64", &obs_residual<double>);
  module.def("obs_adjoint_32", &obs_adjoint<float>);
  module.def("obs_adjoint_64", &obs_adjoint<double>);
  module.def("head_32", &head<float>);
  module.def("head_64", &head<double>);
  module.def("cg_step_32", &cg_step<float>);
  module.def("cg_step_64", &cg_step<double>);
  module.def("adam_step_32", &adam_step<float>);
  module.def("adam_step_64", &adam_step<double>);
}
