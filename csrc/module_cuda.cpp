// The Python module bertxfer_fast._C_cuda: importing it registers the CUDA kernels; build_info() says what was
// compiled. Within Python's limited API, as module.cpp is.
#define Py_LIMITED_API 0x030a0000
#include <Python.h>

namespace {

PyObject* build_info(PyObject*, PyObject*) {
  return Py_BuildValue("{s:s,s:s,s:s,s:s}", "version", BERTXFER_VERSION, "nvcc", BERTXFER_NVCC_VERSION, "torch",
                       BERTXFER_TORCH_VERSION, "architectures", BERTXFER_CUDA_ARCHITECTURES);
}

PyMethodDef methods[] = {
    {"build_info", build_info, METH_NOARGS, "What was compiled, and for which compute capabilities."},
    {nullptr, nullptr, 0, nullptr},
};

PyModuleDef module = {
    PyModuleDef_HEAD_INIT, "bertxfer_fast._C_cuda", nullptr, -1, methods, nullptr, nullptr, nullptr, nullptr};

}  // namespace

PyMODINIT_FUNC PyInit__C_cuda() {
  return PyModule_Create(&module);
}
