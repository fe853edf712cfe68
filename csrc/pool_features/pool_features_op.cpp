// Tensor side of pool_features.
#include <torch/csrc/stable/library.h>

#include <tuple>
#include <vector>

#include "pool_features_tensors.h"

namespace bertxfer {
namespace {

// Owns what a PoolFeatures points to.
struct Inputs {
  std::vector<Tensor> hidden;
  Tensor weights;
  std::vector<PackedView> views;
  PoolFeatures problem{};

  Inputs(const std::vector<Tensor>& layers, const Tensor& cu_seqlens, const std::optional<Tensor>& seqused,
         const Tensor& layer_weights, const std::string& mode, bool normalize)
      : weights(torch::stable::contiguous(layer_weights)) {
    check_pool_inputs(layers, weights);
    for (const Tensor& layer : layers) hidden.push_back(rows_contiguous(layer));
    for (const Tensor& layer : hidden) views.push_back(packed_view(layer, "hidden"));
    problem.hidden = views.data();
    problem.layer_weights = static_cast<const float*>(weights.data_ptr());
    problem.layers = static_cast<int64_t>(views.size());
    problem.width = layers[0].size(1);
    problem.packing = packing_of(layers[0].size(0), cu_seqlens, seqused);
    problem.mode = pool_mode_of(mode);
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

// What the backward pass reads of the forward pass's results. It writes to the rows that argmax names.
void check_stored(const PoolFeatures& p, const Tensor& pooled, const Tensor& argmax, const Tensor& norm,
                  ScalarType dtype) {
  const int64_t sequences = p.packing.sequences;
  const auto fits = [](const Tensor& x, ScalarType type, int64_t size) {
    return x.is_cpu() && x.scalar_type() == type && x.numel() == size && x.is_contiguous();
  };
  STD_TORCH_CHECK(!p.normalize || fits(norm, ScalarType::Float, sequences), "norm: got ", described(norm),
                  ", want contiguous float32 [", sequences, "]");
  STD_TORCH_CHECK(!p.normalize || fits(pooled, dtype, sequences * p.width), "pooled: got ", described(pooled),
                  ", want contiguous [", sequences, ", ", p.width, "] in the dtype of hidden");
  if (p.mode != PoolFeatures::Mode::max) return;
  STD_TORCH_CHECK(fits(argmax, ScalarType::Int, sequences * p.width), "argmax: got ", described(argmax),
                  ", want contiguous int32 [", sequences, ", ", p.width, "]");
  const int32_t* rows = static_cast<const int32_t*>(argmax.data_ptr());
  for (int64_t n = 0; n < sequences; ++n) {
    const int64_t first = p.packing.start(n), used = p.packing.used(n);
    for (int64_t d = 0; d < p.width && used > 0; ++d) {
      const int64_t row = rows[n * p.width + d];
      STD_TORCH_CHECK(row >= first && row < first + used, "argmax: got ", row, " at sequence ", n, ", want ", first,
                      " to ", first + used - 1);
    }
  }
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
  STD_TORCH_CHECK(grad.dim() == 2 && grad.size(0) == sequences && grad.size(1) == p.width, "grad: got ",
                  described(grad), ", want [", sequences, ", ", p.width, "]");
  check_stored(p, pooled, argmax, norm, hidden[0].scalar_type());
  p.pooled = pooled.data_ptr();
  p.argmax = static_cast<int32_t*>(argmax.data_ptr());
  p.norm = static_cast<float*>(norm.data_ptr());

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
