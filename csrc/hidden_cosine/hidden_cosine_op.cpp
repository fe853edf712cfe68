// Tensor side of hidden_cosine.
#include <torch/csrc/stable/library.h>

#include "../common/tensor/projected_loss.h"
#include "hidden_cosine.h"

namespace bertxfer {
namespace {

ProjectedLoss::Result hidden_cosine_cpu(Tensor student,                // [T, Ds]
                                        Tensor teacher,                // [T, Dt]
                                        std::optional<Tensor> weight,  // [Dt, Ds]
                                        std::optional<Tensor> bias,    // [Dt]
                                        std::string reduction, bool need_grad) {
  ProjectedLoss loss(student, teacher, weight, bias, need_grad, BERTXFER_DISPATCH(hidden_cosine));
  return loss.run(reduction, static_cast<double>(teacher.size(0)), 1.0);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(bertxfer_fast, CPU, m) {
  m.impl("hidden_cosine.cpp", TORCH_BOX(&hidden_cosine_cpu));
}

}  // namespace bertxfer
