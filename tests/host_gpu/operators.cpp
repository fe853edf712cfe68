// torch's operators for CUDA, run by those for the CPU on the same memory: see __init__.py.
#include <ATen/ATen.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <c10/cuda/CUDAFunctions.h>
#include <torch/library.h>

#include <set>
#include <string>

namespace {

using at::Tensor;
using c10::DispatchKey;
using c10::IValue;
using MaybeTensor = std::optional<Tensor>;

// What touches no values, or says itself what it does with memory, stays CUDA's own.
const std::set<std::string> kNative = {
    "empty",
    "empty_strided",
    "as_strided",
    "view",
    "_reshape_alias",
    "resize_",
    "set_",
    "unfold",
    "record_stream",
    "is_pinned",
    "_pin_memory",
    "is_set_to",
    "_local_scalar_dense",
    "_fused_sdp_choice",
    "_efficientzerotensor",
    "_has_compatible_shallow_copy_type",
};
// What has to know values on the host, and so waits for the device.
const std::set<std::string> kWaits = {"nonzero", "masked_select", "_unique2",
                                      "equal",   "unique_dim",    "unique_consecutive"};

bool is_cuda(const Tensor& tensor) {
  return tensor.defined() && tensor.is_cuda();
}

// A CUDA tensor as one of the CPU, in the same memory.
Tensor hosted(const Tensor& tensor) {
  if (!is_cuda(tensor)) return tensor;
  static char nothing[64];
  void* data = tensor.storage().nbytes() ? const_cast<void*>(tensor.const_data_ptr()) : nothing;
  const auto options = tensor.options().device(at::kCPU).requires_grad(false);
  return at::from_blob(data, tensor.sizes(), tensor.strides(), [](void*) {}, options);
}

// A tensor of the CPU as a new one of CUDA.
Tensor on_device(const Tensor& tensor) {
  if (!tensor.defined() || tensor.is_cuda()) return tensor;
  Tensor out = at::empty_strided(tensor.sizes(), tensor.strides(), tensor.options().device(at::kCUDA));
  const at::AutoDispatchBelowADInplaceOrView guard;
  if (tensor.numel()) hosted(out).copy_(tensor);
  return out;
}

bool is_written(const c10::Argument& argument) {
  return argument.alias_info() != nullptr && argument.alias_info()->isWrite();
}

IValue argument_on_host(const c10::Argument& argument, const IValue& value) {
  if (value.isTensor()) {
    const Tensor& tensor = value.toTensor();
    if (is_cuda(tensor) && is_written(argument) && tensor.numel() == 0) {  // it may have to grow
      return at::empty(tensor.sizes(), tensor.options().device(at::kCPU).requires_grad(false));
    }
    return hosted(tensor);
  }
  if (value.isTensorList()) {
    c10::List<Tensor> list;
    for (const Tensor& tensor : value.toTensorList()) list.push_back(hosted(tensor));
    return list;
  }
  if (value.isOptionalTensorList()) {
    c10::List<MaybeTensor> list;
    for (const MaybeTensor& tensor : value.toOptionalTensorList()) {
      list.push_back(tensor ? MaybeTensor(hosted(*tensor)) : tensor);
    }
    return list;
  }
  if (value.isDevice()) return IValue(c10::Device(at::kCPU));
  if (value.isGenerator()) return IValue();
  if (value.isBool() && argument.name() == "pin_memory") return IValue(false);
  return value;
}

void warn_if_it_waits(const std::string& name, const std::vector<IValue>& arguments) {
  bool waits = kWaits.count(name) > 0;
  if (name == "copy_") {
    const bool crosses = arguments[0].toTensor().is_cuda() != arguments[1].toTensor().is_cuda();
    waits = crosses && !arguments[2].toBool();
  }
  if (waits) c10::cuda::warn_or_error_on_sync();
}

// Tensors that were written to and had to grow.
void take_back(const IValue& before, const IValue& after) {
  Tensor out = before.toTensor();
  const Tensor& found = after.toTensor();
  if (!is_cuda(out) ||
      (out.sizes() == found.sizes() && (!found.numel() || found.const_data_ptr() == out.const_data_ptr())))
    return;
  out.resize_(found.sizes());
  if (found.numel()) hosted(out).copy_(found);
}

// The argument that is written to and then returned as this result; -1: it is a new one.
int64_t written_argument(const c10::FunctionSchema& schema, const c10::Argument& result) {
  if (!is_written(result)) return -1;
  const auto& arguments = schema.arguments();
  for (size_t i = 0; i < arguments.size(); ++i) {
    if (is_written(arguments[i]) && arguments[i].alias_info()->beforeSets() == result.alias_info()->beforeSets()) {
      return static_cast<int64_t>(i);
    }
  }
  return -1;
}

void run_on_host(const c10::OperatorHandle& op, c10::DispatchKeySet, torch::jit::Stack* stack) {
  const auto& arguments = op.schema().arguments();
  const auto& returns = op.schema().returns();
  const size_t base = stack->size() - arguments.size();
  const std::vector<IValue> before(stack->begin() + base, stack->end());
  warn_if_it_waits(op.operator_name().name.substr(6), before);
  for (size_t i = 0; i < arguments.size(); ++i) (*stack)[base + i] = argument_on_host(arguments[i], before[i]);
  const std::vector<IValue> hosts(stack->begin() + base, stack->end());
  op.redispatchBoxed(c10::DispatchKeySet(DispatchKey::CPU), stack);
  for (size_t i = 0; i < arguments.size(); ++i) {
    if (is_written(arguments[i]) && before[i].isTensor() && before[i].toTensor().defined())
      take_back(before[i], hosts[i]);
  }
  const size_t first = stack->size() - returns.size();
  for (size_t k = 0; k < returns.size(); ++k) {
    IValue& value = (*stack)[first + k];
    if (value.isTensor()) {
      const int64_t argument = written_argument(op.schema(), returns[k]);
      value = argument < 0 ? on_device(value.toTensor()) : before[argument];
    } else if (value.isTensorList()) {
      c10::List<Tensor> list;
      for (const Tensor& tensor : value.toTensorList()) list.push_back(on_device(tensor));
      value = list;
    }
  }
}

// ---- what only CUDA has ----

Tensor product(const Tensor& a, const Tensor& b) {
  return at::matmul(hosted(a).to(at::kDouble), hosted(b).to(at::kDouble));
}
Tensor mm_dtype(const Tensor& a, const Tensor& b, at::ScalarType dtype) {
  return on_device(product(a, b).to(dtype));
}
Tensor& mm_dtype_out(const Tensor& a, const Tensor& b, at::ScalarType dtype, Tensor& out) {
  TORCH_CHECK(out.scalar_type() == dtype);
  hosted(out).copy_(product(a, b));
  return out;
}
Tensor& addmm_dtype_out(const Tensor& c, const Tensor& a, const Tensor& b, at::ScalarType dtype, const at::Scalar& beta,
                        const at::Scalar& alpha, Tensor& out) {
  TORCH_CHECK(out.scalar_type() == dtype);
  Tensor total = product(a, b).mul(alpha);
  if (beta.toDouble() != 0) total = total + hosted(c).to(at::kDouble).mul(beta);
  hosted(out).copy_(total);
  return out;
}

std::tuple<Tensor, Tensor, Tensor> fused_lstm_cell(const Tensor& input, const Tensor& hidden, const Tensor& cx,
                                                   const MaybeTensor& bias_input, const MaybeTensor& bias_hidden) {
  Tensor gates = hosted(input) + hosted(hidden);
  if (bias_input && bias_input->defined()) gates = gates + hosted(*bias_input) + hosted(*bias_hidden);
  const auto parts = gates.chunk(4, 1);
  const Tensor i = parts[0].sigmoid(), f = parts[1].sigmoid(), g = parts[2].tanh(), o = parts[3].sigmoid();
  const Tensor cy = f * hosted(cx) + i * g;
  return {on_device(o * cy.tanh()), on_device(cy), on_device(at::cat({i, f, g, o}, 1))};
}
std::tuple<Tensor, Tensor, Tensor> fused_lstm_cell_backward(const MaybeTensor& grad_hy, const MaybeTensor& grad_cy,
                                                            const Tensor& cx, const Tensor& cy, const Tensor& workspace,
                                                            bool has_bias) {
  const auto parts = hosted(workspace).chunk(4, 1);
  const Tensor i = parts[0], f = parts[1], g = parts[2], o = parts[3], t = hosted(cy).tanh();
  const auto given = [&](const MaybeTensor& x) { return x && x->defined() ? hosted(*x) : at::zeros_like(t); };
  const Tensor dh = given(grad_hy), dc = given(grad_cy) + dh * o * (1 - t * t);
  const Tensor gates =
      at::cat({dc * g * i * (1 - i), dc * hosted(cx) * f * (1 - f), dc * i * (1 - g * g), dh * t * o * (1 - o)}, 1);
  return {on_device(gates), on_device(dc * f), has_bias ? on_device(gates.sum(0)) : Tensor()};
}

}  // namespace

// Called once, when torch has been imported.
extern "C" __attribute__((visibility("default"))) void install() {
  static torch::Library library(torch::Library::IMPL, "aten", DispatchKey::CUDA, __FILE__, __LINE__);
  const auto run = [] { return torch::CppFunction::makeFromBoxedFunction<&run_on_host>(); };
  for (const auto& name : c10::Dispatcher::singleton().getAllOpNames()) {
    const auto op = c10::Dispatcher::singleton().findOp(name);
    if (name.name.rfind("aten::", 0) != 0 || kNative.count(name.name.substr(6)) || !op || !op->hasSchema()) continue;
    const bool on_cpu = op->hasKernelForDispatchKey(DispatchKey::CPU) ||
                        op->hasKernelForDispatchKey(DispatchKey::CompositeExplicitAutograd) ||
                        op->hasKernelForDispatchKey(DispatchKey::CompositeExplicitAutogradNonFunctional);
    if (!on_cpu || !op->hasKernelForDispatchKey(DispatchKey::CUDA)) continue;
    const auto overload = name.overload_name.empty() ? "" : "." + name.overload_name;
    library.impl((name.name.substr(6) + overload).c_str(), run());
  }
  library.impl("copy_", run());
  library.impl("mm.dtype", mm_dtype);
  library.impl("mm.dtype_out", mm_dtype_out);
  library.impl("addmm.dtype_out", addmm_dtype_out);
  library.impl("_thnn_fused_lstm_cell", fused_lstm_cell);
  library.impl("_thnn_fused_lstm_cell_backward_impl", fused_lstm_cell_backward);
}
