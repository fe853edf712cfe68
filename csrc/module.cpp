// The Python module bertxfer_fast._C: importing it registers the CPU kernels; build_info() says what was compiled.
// It and module_cuda.cpp alone include Python.h, within the limited API, so that one binary serves every Python
// >= 3.10.
#define Py_LIMITED_API 0x030a0000
#include <Python.h>

#include "common/cpu/isa.h"

namespace {

PyObject* build_info(PyObject*, PyObject*) {
  return Py_BuildValue("{s:s,s:s,s:s,s:s,s:s}", "version", BERTXFER_VERSION, "compiler", __VERSION__, "torch",
                       BERTXFER_TORCH_VERSION, "instruction_sets", bertxfer::compiled_isas(), "instruction_set",
                       bertxfer::isa_name(bertxfer::current_isa()));
}

PyMethodDef methods[] = {
    {"build_info", build_info, METH_NOARGS, "What was compiled, and the instruction set that is in use."},
    {nullptr, nullptr, 0, nullptr},
};

PyModuleDef module = {
    PyModuleDef_HEAD_INIT, "bertxfer_fast._C", nullptr, -1, methods, nullptr, nullptr, nullptr, nullptr};

}  // namespace

PyMODINIT_FUNC PyInit__C() {
  return PyModule_Create(&module);
}
