// Tensor side of pool_features.
#include <torch/csrc/stable/library.h>

#include <tuple>
#include <vector>

#include "../common/tensor/checks.h"
#include "pool_features.h"

namespace bertxfer {
namespace {

PoolFeatures::Mode mode_of(const std::string& name) {
  if (name == "mean") return PoolFeatures::Mode::mean;
  if (name == "cls") return PoolFeatures::Mode::cls;
  if (name == "max") return PoolFeatures::Mode::max;
  STD_TORCH_CHECK(name == "mean_sqrt", "mode: got '", name, "', want 'mean', 'cls', 'max' or 'mean_sqrt'");
  return PoolFeatures::Mode::mean_sqrt;
}

// Checks that every sequence's highest rows are its own; the backward pass indexes with them.
void check_argmax(const Packing& packing, int64_t width, const int32_t* argmax) {
  for (int64_t n = 0; n < packing.sequences; ++n) {
    const int64_t first = packing.start(n), used = packing.used(n);
    for (int64_t d = 0; d < width && used > 0; ++d) {
      const int64_t row = argmax[n * width + d];
      STD_TORCH_CHECK(row >= first && row < first + used, "argmax: got ", row, " at sequence ", n, ", want ", first,
                      " to ", first + used - 1);
    }
  }
}

// Owns what a PoolFeatures points to.
struct Inputs {
  std::vector<Tensor> hidden;
  Tensor weights;
  std::vector<PackedView> views;
  PoolFeatures problem{};

  Inputs(const std::vector<Tensor>& layers, const Tensor& cu_seqlens, const std::optional<Tensor>& seqused,
         const Tensor& layer_weights, const std::string& mode, bool normalize)
      : weights(torch::stable::contiguous(layer_weights)) {
    STD_TORCH_CHECK(!layers.empty(), "hidden: got no layer, want at least one");
    STD_TORCH_CHECK(
        weights.scalar_type() == ScalarType::Float && weights.numel() == static_cast<int64_t>(layers.size()),
        "layer_weights: got ", shown(weights), ", want one float32 number per layer");
    const int64_t tokens = layers[0].size(0), width = layers[0].size(1);
    for (const Tensor& layer : layers) {
      STD_TORCH_CHECK(layer.dim() == 2 && layer.size(0) == tokens && layer.size(1) == width &&
                          layer.scalar_type() == layers[0].scalar_type(),
                      "hidden: got ", shown(layer), ", want [T, D] as the first layer, ", shown(layers[0]));
      hidden.push_back(rows_contiguous(layer));
      views.push_back(packed_view(hidden.back(), "hidden"));
    }
    problem.hidden = views.data();
    problem.layer_weights = static_cast<const float*>(weights.data_ptr());
    problem.layers = static_cast<int64_t>(views.size());
    problem.width = width;
    problem.packing = packing_of(tokens, cu_seqlens, seqused);
    problem.mode = mode_of(mode);
    problem.normalize = normalize;
    problem.dtype = views[0].dtype;
  }
};

std::tuple<Tensor, Tensor, Tensor> pool_features_cpu(std::vector<Tensor> hidden,     // [layers] of [T, D]
                                                     Tensor cu_seqlens,              // [N + 1]
                                                     std::optional<Tensor> seqused,  // [N]
                                                     Tensor layer_weights,           // [layers]
                                                     std::string mode, bool normalize) {
  Inputs inputs(hidden, cu_seqlens, seqused, layer_weights, mode, normalize);
  PoolFeatures& p = inputs.problem;
  const int64_t sequences = p.packing.sequences;
  const bool max = p.mode == PoolFeatures::Mode::max;
  Tensor pooled = empty({sequences, p.width}, hidden[0].scalar_type());
  Tensor argmax = max ? empty({sequences, p.width}, ScalarType::Int) : empty({0}, ScalarType::Int);
  Tensor norm = normalize ? empty({sequences}, ScalarType::Float) : empty({0}, ScalarType::Float);
  p.pooled = pooled.data_ptr();
  p.argmax = static_cast<int32_t*>(argmax.data_ptr());
  p.norm = static_cast<float*>(norm.data_ptr());
  BERTXFER_DISPATCH(pool_features)(p);
  return {pooled, argmax, norm};
}

std::tuple<std::vector<Tensor>, Tensor> pool_features_backward_cpu(Tensor grad,                    // [N, D]
                                                                   std::vector<Tensor> hidden,     // [layers] of [T, D]
                                                                   Tensor cu_seqlens,              // [N + 1]
                                                                   std::optional<Tensor> seqused,  // [N]
                                                                   Tensor layer_weights,           // [layers]
                                                                   std::string mode, bool normalize,
                                                                   Tensor pooled,  // [N, D]
                                                                   Tensor argmax,  // [N, D], mode max
                                                                   Tensor norm,    // [N], when normalize
                                                                   bool need_weights) {
  Inputs inputs(hidden, cu_seqlens, seqused, layer_weights, mode, normalize);
  PoolFeatures& p = inputs.problem;
  const int64_t sequences = p.packing.sequences;
  dtype_of(grad, "grad");  // refuses what has no conversion
  grad = torch::stable::contiguous(torch::stable::to(grad, hidden[0].scalar_type()));
  STD_TORCH_CHECK(grad.dim() == 2 && grad.size(0) == sequences && grad.size(1) == p.width, "grad: got ", shown(grad),
                  ", want [N, D]");
  const bool max = p.mode == PoolFeatures::Mode::max;
  STD_TORCH_CHECK(!max || (argmax.scalar_type() == ScalarType::Int && argmax.numel() == sequences * p.width &&
                           argmax.is_contiguous()),
                  "argmax: got ", shown(argmax), ", want contiguous int32 [N, D]");
  STD_TORCH_CHECK(
      !normalize || (norm.scalar_type() == ScalarType::Float && norm.numel() == sequences && norm.is_contiguous()),
      "norm: got ", shown(norm), ", want contiguous float32 [N]");
  STD_TORCH_CHECK(!normalize || (pooled.scalar_type() == hidden[0].scalar_type() &&
                                 pooled.numel() == sequences * p.width && pooled.is_contiguous()),
                  "pooled: got ", shown(pooled), ", want contiguous [N, D] in the dtype of hidden, ", shown(hidden[0]));
  p.pooled = pooled.data_ptr();
  p.argmax = static_cast<int32_t*>(argmax.data_ptr());
  p.norm = static_cast<float*>(norm.data_ptr());
  if (max) check_argmax(p.packing, p.width, p.argmax);

  std::vector<Tensor> grad_hidden;
  std::vector<void*> targets;
  for (int64_t l = 0; l < p.layers; ++l) {
    grad_hidden.push_back(empty({hidden[l].size(0), p.width}, hidden[0].scalar_type()));
    targets.push_back(grad_hidden.back().data_ptr());
  }
  std::vector<double> shares(sequences * p.layers, 0.0);
  BERTXFER_DISPATCH(pool_features_backward)
  ({p, grad.data_ptr(), targets.data(), need_weights ? shares.data() : nullptr});

  Tensor grad_weights = empty({p.layers}, ScalarType::Float);
  for (int64_t l = 0; l < p.layers; ++l) {
    double sum = 0.0;
    for (int64_t n = 0; n < sequences; ++n) sum += shares[n * p.layers + l];
    static_cast<float*>(grad_weights.data_ptr())[l] = static_cast<float>(sum);
  }
  return {grad_hidden, grad_weights};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(bertxfer_fast, CPU, m) {
  m.impl("pool_features.cpp", TORCH_BOX(&pool_features_cpu));
  m.impl("pool_features_backward.cpp", TORCH_BOX(&pool_features_backward_cpu));
}

}  // namespace bertxfer
