// CUDA launcher of attention_map: which instance of which kernel.
#include "attention_map_cuda.h"
#include "columns.cuh"
#include "rows.cuh"

namespace bertxfer {
namespace {

constexpr float kLog2E = 1.4426950408889634f;
constexpr int kLossThreads = 256;

// The loss where there is no second kernel to end it.
__global__ void __launch_bounds__(kLossThreads) loss_kernel(const __grid_constant__ MapProblem p, int64_t losses) {
  finish_loss(p, loss_scale_of(p), losses);
}

template <class T, int BS>
void launch_both(const AttentionMapCuda& p, const MapProblem& problem, void* stream) {
  using Block = ScoreTile<T, BS>;
  const int64_t shared = shared_bytes<Block>(Widths<T>({problem.q_student, problem.q_teacher}));
  const int64_t blocks = tile_slots(p.tokens, p.packing.sequences, Block::kRows) * p.heads;
  BERTXFER_LAUNCH((map_rows_kernel<T, BS>), blocks, Block::kThreads, shared, stream, problem);
  if (p.grad_k != nullptr && blocks > 0) {
    BERTXFER_LAUNCH((map_columns_kernel<T, BS>), blocks, Block::kThreads, shared, stream, problem);
  } else {
    BERTXFER_LAUNCH(loss_kernel, 1, kLossThreads, 0, stream, problem, blocks);
  }
}

template <class T>
void run(const AttentionMapCuda& p, const MapProblem& problem, void* stream) {
  if (p.q_student.dim <= 16) return launch_both<T, 16>(p, problem, stream);
  if (p.q_student.dim <= 32) return launch_both<T, 32>(p, problem, stream);
  if (p.q_student.dim <= 64) return launch_both<T, 64>(p, problem, stream);
  if (p.q_student.dim <= 128) return launch_both<T, 128>(p, problem, stream);
  launch_both<T, 256>(p, problem, stream);
}

}  // namespace

int64_t map_statistics(Dtype dtype, bool mse) {
  const int64_t planes = dtype == Dtype::f32 ? SoftmaxRow<float>::kPlanes : SoftmaxRow<__half>::kPlanes;
  return 2 * planes + (mse ? 1 : 0);
}

int64_t map_losses(const AttentionMapCuda& p) {
  return tile_slots(p.tokens, p.packing.sequences, block_rows(p)) * p.heads;
}

void attention_map_cuda(const AttentionMapCuda& p, void* stream) {
  MapProblem problem{PairProblem(p), p.scale_student * (p.mse ? 2.0f : 1.0f), p.mse, p.symmetric, p.statistics};
  problem.scale_student *= kLog2E;
  problem.scale_teacher *= kLog2E;
  with_dtype(p.q_student.dtype, [&](auto number) { run<decltype(number)>(p, problem, stream); });
}

}  // namespace bertxfer
