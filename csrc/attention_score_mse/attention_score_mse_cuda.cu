// CUDA launcher of attention_score_mse: which instance of which kernel.
#include <algorithm>

#include "attention_score_mse_cuda.h"
#include "gram.cuh"
#include "tiled.cuh"

namespace bertxfer {
namespace {

// Widest head of either side that has Gram matrices.
constexpr int64_t kWidestGram = 64;

// Calls work(Gram()) with the narrowest one that holds both sides.
template <class T, class Work>
void with_gram(const AttentionScoreMseCuda& p, Work&& work) {
  const bool narrow_student = p.q_student.dim <= 32, narrow_teacher = p.q_teacher.dim <= 32;
  if (narrow_student && narrow_teacher) return work(Gram<T, 32, 32>());
  if (narrow_student) return work(Gram<T, 32, 64>());
  if (narrow_teacher) return work(Gram<T, 64, 32>());
  work(Gram<T, 64, 64>());
}

bool takes_grams(const AttentionScoreMseCuda& p) {
  if (p.max_seqlen <= p.tiled_up_to || std::max(p.q_student.dim, p.q_teacher.dim) > kWidestGram) return false;
  bool fits = false;
  with_dtype(p.q_student.dtype, [&](auto number) {
    with_gram<decltype(number)>(p, [&](auto gram) { fits = decltype(gram)::kShared <= shared_memory_limit(); });
  });
  return fits;
}

// As many blocks as the device runs at once, which share the tiles.
int64_t tiled_blocks(const AttentionScoreMseCuda& p) {
  const bool small = p.q_student.dtype != Dtype::f32 && p.q_student.dim <= 64;
  const int blocks = small ? ScoreTile<__half, 64>::kBlocks : ScoreTile<float, 64>::kBlocks;
  const int64_t tiles = tile_slots(p.tokens, p.packing.sequences, block_rows(p)) * p.heads;
  const int64_t at_once = static_cast<int64_t>(blocks) * device_attribute(cudaDevAttrMultiProcessorCount);
  return std::max<int64_t>(std::min(at_once, tiles * (p.grad_q != nullptr ? 2 : 1)), 1);
}

template <class T, int BS>
void launch_tiled(const AttentionScoreMseCuda& p, const ScoreMse& problem, void* stream) {
  using Block = ScoreTile<T, BS>;
  const int64_t shared = shared_bytes<Block>(Widths<T>({problem.q_student, problem.q_teacher}));
  BERTXFER_LAUNCH((tiled_kernel<T, BS>), tiled_blocks(p), Block::kThreads, shared, stream, problem);
}

template <class T>
void run(const AttentionScoreMseCuda& p, void* stream) {
  const bool grams = takes_grams(p);
  const int tiled_up_to = static_cast<int>(std::min<int64_t>(p.tiled_up_to, INT32_MAX));
  const ScoreMse problem{PairProblem(p), tiled_up_to, grams ? p.takes_tiles : nullptr, p.ticket};
  const int64_t pairs = p.packing.sequences * p.heads;
  if (grams && pairs > 0) {
    with_gram<T>(p, [&](auto gram) {
      using G = decltype(gram);
      BERTXFER_LAUNCH(gram_kernel<G>, pairs, G::kThreads, G::kShared, stream, problem);
    });
  } else {
    check_cuda(cudaMemsetAsync(p.ticket, 0, sizeof(unsigned), static_cast<cudaStream_t>(stream)), "cudaMemsetAsync");
  }
  if (p.q_student.dim <= 64) return launch_tiled<T, 64>(p, problem, stream);
  if (p.q_student.dim <= 128) return launch_tiled<T, 128>(p, problem, stream);
  launch_tiled<T, 256>(p, problem, stream);
}

}  // namespace

int64_t score_losses(const AttentionScoreMseCuda& p) {
  return p.packing.sequences * p.heads + tiled_blocks(p);
}

void attention_score_mse_cuda(const AttentionScoreMseCuda& p, void* stream) {
  with_dtype(p.q_student.dtype, [&](auto number) { run<decltype(number)>(p, stream); });
}

}  // namespace bertxfer
