// CUDA launcher of attention_score_mse: which instance of which kernel.
#include <algorithm>

#include "attention_score_mse_cuda.h"
#include "gram.cuh"
#include "tiled.cuh"

namespace bertxfer {
namespace {

bool takes_grams(const AttentionScoreMseCuda& p) {
  return p.max_seqlen > p.tiled_up_to && std::max(p.q_student.dim, p.q_teacher.dim) <= kWidestGram;
}

ScoreMse problem_of(const AttentionScoreMseCuda& p) {
  const int64_t tiled_up_to = takes_grams(p) ? p.tiled_up_to : INT32_MAX;
  return {PairProblem(p), static_cast<int>(std::min<int64_t>(tiled_up_to, INT32_MAX)), p.sums};
}

template <class T, int BS, int BT>
void launch_gram(const AttentionScoreMseCuda& p, const ScoreMse& problem, void* stream) {
  using G = Gram<T, BS, BT>;
  BERTXFER_LAUNCH((gram_kernel<T, BS, BT>), p.packing.sequences * p.heads, G::kThreads, G::kShared, stream, problem);
}

template <class T, int BS>
void launch_tiled(const AttentionScoreMseCuda& p, ScoreMse problem, void* stream) {
  using Block = ScoreTile<T, BS>;
  problem.losses += gram_losses(p);
  const int64_t shared = shared_bytes<Block>(Widths<T>({problem.q_student, problem.q_teacher}));
  BERTXFER_LAUNCH((tiled_kernel<T, BS>), tile_losses(p) * (p.grad_q != nullptr ? 2 : 1), Block::kThreads, shared,
                  stream, problem);
}

template <class T>
void run(const AttentionScoreMseCuda& p, void* stream) {
  const ScoreMse problem = problem_of(p);
  const int64_t ds = p.q_student.dim, dt = p.q_teacher.dim;
  if (takes_grams(p)) {
    if (ds <= 32 && dt <= 32) launch_gram<T, 32, 32>(p, problem, stream);
    if (ds <= 32 && dt > 32) launch_gram<T, 32, 64>(p, problem, stream);
    if (ds > 32 && dt <= 32) launch_gram<T, 64, 32>(p, problem, stream);
    if (ds > 32 && dt > 32) launch_gram<T, 64, 64>(p, problem, stream);
  }
  if (ds <= 64) return launch_tiled<T, 64>(p, problem, stream);
  if (ds <= 128) return launch_tiled<T, 128>(p, problem, stream);
  launch_tiled<T, 256>(p, problem, stream);
}

}  // namespace

int64_t gram_losses(const AttentionScoreMseCuda& p) {
  return takes_grams(p) ? p.packing.sequences * p.heads : 0;
}

int64_t tile_losses(const AttentionScoreMseCuda& p) {
  return tile_slots(p.tokens, p.packing.sequences, block_rows(p)) * p.heads;
}

void attention_score_mse_cuda(const AttentionScoreMseCuda& p, void* stream) {
  with_dtype(p.q_student.dtype, [&](auto tag) { run<decltype(tag)>(p, stream); });
}

}  // namespace bertxfer
