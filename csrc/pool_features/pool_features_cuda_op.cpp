// Tensor side of pool_features on a GPU.
#include <torch/csrc/stable/library.h>

#include <tuple>
#include <vector>

#include "../common/tensor/cuda_tensors.h"
#include "pool_features_cuda.h"
#include "pool_features_tensors.h"

namespace bertxfer {
namespace {

// Owns what a PoolFeatures points to.
struct Inputs {
  std::vector<Tensor> hidden;
  Tensor weights;
  std::vector<PackedView> views;
  PoolFeatures problem{};
  int64_t tokens;

  Inputs(const std::vector<Tensor>& layers, const Tensor& cu_seqlens, const std::optional<Tensor>& seqused,
         const Tensor& layer_weights, const std::string& mode, bool normalize)
      : weights(torch::stable::contiguous(layer_weights)), tokens(layers[0].size(0)) {
    const Tensor& first = layers[0];
    const int64_t count = static_cast<int64_t>(layers.size());
    STD_TORCH_CHECK(count <= cuda::kPoolLayers, "hidden: got ", count, " layers, want at most ", cuda::kPoolLayers);
    check_device(weights, first, "layer_weights");
    check_pool_inputs(layers, weights);
    for (const Tensor& layer : layers) {
      hidden.push_back(rows_contiguous(layer));
      views.push_back(device_view(hidden.back(), first, "hidden"));
    }
    problem.hidden = views.data();
    problem.layer_weights = floats(weights);
    problem.layers = count;
    problem.width = first.size(1);
    problem.packing = device_packing(first, cu_seqlens, seqused);
    problem.mode = pool_mode_of(mode);
    problem.normalize = normalize;
    problem.dtype = views[0].dtype;
  }
};

std::tuple<Tensor, Tensor, Tensor> pool_features_cuda(std::vector<Tensor> hidden,     // [layers] of [T, D]
                                                      Tensor cu_seqlens,              // [N + 1]
                                                      std::optional<Tensor> seqused,  // [N]
                                                      Tensor layer_weights,           // [layers]
                                                      std::string mode, bool normalize) {
  STD_TORCH_CHECK(!hidden.empty(), "hidden: got no layer, want at least one");
  const Tensor& first = hidden[0];
  const OnDevice device(first, "hidden");
  Inputs inputs(hidden, cu_seqlens, seqused, layer_weights, mode, normalize);
  PoolFeatures& p = inputs.problem;
  const int64_t sequences = p.packing.sequences, slots = cuda::pool_slots(inputs.tokens, sequences);
  const bool max = p.mode == PoolFeatures::Mode::max, cls = p.mode == PoolFeatures::Mode::cls;
  Tensor pooled = empty_on(first, {sequences, p.width}, first.scalar_type());
  Tensor argmax = max ? empty_on(first, {sequences, p.width}, ScalarType::Int) : empty_on(first, {0}, ScalarType::Int);
  Tensor norm = empty_on(first, {normalize ? sequences : 0}, ScalarType::Float);
  const Tensor partials = empty_on(first, {cls ? 0 : slots, p.width}, ScalarType::Float);
  const Tensor rows = empty_on(first, {max ? slots : 0, p.width}, ScalarType::Int);
  p.pooled = pooled.data_ptr();
  p.argmax = static_cast<int32_t*>(argmax.data_ptr());
  p.norm = floats(norm);
  cuda::pool_features({p, inputs.tokens, floats(partials), static_cast<int32_t*>(rows.data_ptr())}, device.stream());
  return {pooled, argmax, norm};
}

std::tuple<std::vector<Tensor>, Tensor> pool_features_backward_cuda(Tensor grad,                 // [N, D]
                                                                    std::vector<Tensor> hidden,  // [layers] of [T, D]
                                                                    Tensor cu_seqlens,           // [N + 1]
                                                                    std::optional<Tensor> seqused,  // [N]
                                                                    Tensor layer_weights,           // [layers]
                                                                    std::string mode, bool normalize,
                                                                    Tensor pooled,  // [N, D]
                                                                    Tensor argmax,  // [N, D], mode max
                                                                    Tensor norm,    // [N], when normalize
                                                                    bool need_weights) {
  STD_TORCH_CHECK(!hidden.empty(), "hidden: got no layer, want at least one");
  const Tensor& first = hidden[0];
  const OnDevice device(first, "hidden");
  Inputs inputs(hidden, cu_seqlens, seqused, layer_weights, mode, normalize);
  PoolFeatures& p = inputs.problem;
  const int64_t sequences = p.packing.sequences;
  dtype_of(grad, "grad");
  grad = torch::stable::contiguous(torch::stable::to(grad, first.scalar_type()));
  check_device(grad, first, "grad");
  STD_TORCH_CHECK(grad.dim() == 2 && grad.size(0) == sequences && grad.size(1) == p.width, "grad: got ",
                  described(grad), ", want [", sequences, ", ", p.width, "]");
  const auto check_like_pooled = [&](const Tensor& tensor, const char* name, ScalarType dtype, int64_t numel) {
    check_device(tensor, first, name);
    STD_TORCH_CHECK(tensor.scalar_type() == dtype && tensor.numel() == numel && tensor.is_contiguous(), name, ": got ",
                    described(tensor), ", want ", numel, " contiguous entries as the forward pass returned them");
  };
  const bool max = p.mode == PoolFeatures::Mode::max;
  check_like_pooled(pooled, "pooled", first.scalar_type(), sequences * p.width);
  check_like_pooled(argmax, "argmax", ScalarType::Int, max ? sequences * p.width : 0);
  check_like_pooled(norm, "norm", ScalarType::Float, normalize ? sequences : 0);
  p.pooled = pooled.data_ptr();
  p.argmax = static_cast<int32_t*>(argmax.data_ptr());
  p.norm = floats(norm);

  std::vector<Tensor> grad_hidden;
  std::vector<void*> targets;
  for (int64_t l = 0; l < p.layers; ++l) {
    grad_hidden.push_back(empty_on(first, {inputs.tokens, p.width}, first.scalar_type()));
    targets.push_back(grad_hidden.back().data_ptr());
  }
  const Tensor grad_pooled = empty_on(first, {sequences, p.width}, ScalarType::Float);
  const int64_t count = need_weights ? cuda::pool_weight_shares(p, inputs.tokens) : 0;
  const Tensor shares = empty_on(first, {p.layers, count}, ScalarType::Float);
  Tensor grad_weights = empty_on(first, {p.layers}, ScalarType::Float);
  cuda::pool_features_backward({p, inputs.tokens, grad.data_ptr(), targets.data(), floats(grad_pooled),
                                need_weights ? floats(shares) : nullptr, floats(grad_weights)},
                               device.stream());
  return {grad_hidden, grad_weights};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(bertxfer_fast, BERTXFER_CUDA_KEY, m) {
  m.impl("pool_features.cuda", TORCH_BOX(&pool_features_cuda));
  m.impl("pool_features_backward.cuda", TORCH_BOX(&pool_features_backward_cuda));
}

}  // namespace bertxfer
