// Tensor side of hidden_mse.
#include <torch/csrc/stable/library.h>

#include "../common/tensor/projected_loss.h"
#include "hidden_mse.h"

namespace bertxfer {
namespace {

ProjectedLoss::Result hidden_mse_cpu(Tensor student,                // [T, Ds]
                                     Tensor teacher,                // [T, Dt]
                                     std::optional<Tensor> weight,  // [Dt, Ds]
                                     std::optional<Tensor> bias,    // [Dt]
                                     std::string reduction, bool need_grad) {
  ProjectedLoss loss(student, teacher, weight, bias, need_grad, BERTXFER_DISPATCH(hidden_mse));
  return loss.run(reduction, static_cast<double>(teacher.numel()), 2.0);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(bertxfer_fast, CPU, m) {
  m.impl("hidden_mse.cpp", TORCH_BOX(&hidden_mse_cpu));
}

}  // namespace bertxfer
