// What Python needs to know of the build: mirnet_fast._C. The kernels do not come through here but
// through torch's dispatcher, and no torch header is included.
#include <pybind11/pybind11.h>

#include <sstream>
#include <string>

#include "cpu/isa.h"

namespace py = pybind11;
namespace cpu = mirnet_fast::cpu;

namespace {

#if defined(__clang__)
constexpr char kCompiler[] = "Clang " __clang_version__;
#else
constexpr char kCompiler[] = "GCC " __VERSION__;
#endif

py::tuple split(const std::string& list) {
  py::list items;
  std::stringstream stream(list);
  for (std::string item; std::getline(stream, item, ',');) items.append(item);
  return py::tuple(items);
}

py::dict build_info() {
  py::dict info;
  info["build"] = MIRNET_FAST_BUILD;
  info["built_with_torch"] = MIRNET_FAST_TORCH;
  info["compiler"] = kCompiler;
  info["cxx_flags"] = MIRNET_FAST_CXX_FLAGS;
  info["isa_compiled"] = split(MIRNET_FAST_ISAS);
  info["isa_detected"] = cpu::name(cpu::detected());
  info["isa_active"] = cpu::name(cpu::active());
  info["nvcc"] = MIRNET_FAST_NVCC;
  info["cuda_architectures"] = split(MIRNET_FAST_CUDA_ARCHITECTURES);
  return info;
}

}  // namespace

PYBIND11_MODULE(_C, module) {
  module.doc() = "How the native parts of mirnet_fast were built.";
  module.def("build_info", &build_info);
}
