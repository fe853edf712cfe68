// The Gram route: one block for one sequence and head. See attention_score_mse_cuda.h.
//
// Of a chunk of tokens X = [S T] (student's and teacher's columns side by side, W = BS + BT wide) the block adds up the
// lower part of X^T X, 16 rows of it a warp: columns of S for every row, columns of T for the teacher's. The products
// of both matrices, of q and of k, are the loss. The gradients are X G, G = [ss SS; -st TS] of the other side: float32
// is multiplied as it is, half precision in two halves, as G's rounding would outweigh the small difference it makes.
#pragma once

#include "../common/cuda/score_tiles.cuh"

namespace bertxfer {

struct ScoreMse : PairProblem {  // partial_losses: [N, H] of Gram matrices, if any takes them, then [blocks] of tiles
  int tiled_up_to;
  int32_t* takes_tiles;  // [N, H]: whether a sequence and head takes tiles; null: all do
  unsigned* ticket;      // [1], see is_last_block
};

// A loss below this share of the scores' squares has lost its digits in their difference.
constexpr float kGuard = 0.01f;

template <class T, int BS, int BT>
struct Gram {
  using Number = T;
  static constexpr int kStudent = BS, kTeacher = BT;
  static constexpr int W = BS + BT, kWarps = W / 16, kThreads = 32 * kWarps;
  static constexpr int kChunk = 8 * kWarps;  // tokens: two warps share 16 rows of a gradient
  static_assert(kChunk % kDepth == 0, "whole products");
  static constexpr bool kHalves = sizeof(T) == 2;

  // Shared memory: two chunks; G of k (before that the teacher's part of q's Gram matrix); G of q (before that the
  // student's part of it).
  static constexpr int kStride = W + kPad<T>, kGramStride = BS + kPad<T>;
  static constexpr int kChunkSize = kChunk * kStride;
  static constexpr int kOperandBytes = W * kGramStride * (kHalves ? 2 : 1) * sizeof(T);
  static constexpr int kSumBytes = (W * BS > BT * BT ? W * BS : BT * BT) * sizeof(float);
  static constexpr int kGramSize = (kOperandBytes > kSumBytes ? kOperandBytes : kSumBytes) / sizeof(T);
  static constexpr int kShared = (2 * kChunkSize + 2 * kGramSize) * sizeof(T);

  static constexpr int kStudentTiles = BS / 8, kTiles = W / 8;
};

// Calls work(chunk, row) for all chunks of a sequence, the next one on its way.
template <class G, class T, class Work>
__device__ __forceinline__ void for_chunks(T* chunks, const RowSource& student, const RowSource& teacher, int start,
                                           int length, int head, int student_width, Work&& work) {
  const auto fetch = [&](int row, int buffer) {
    T* to = chunks + buffer * G::kChunkSize;
    const int64_t first = static_cast<int64_t>(start) + row;
    copy_rows(to, G::kStride, student, first, head, G::kChunk, length - row, student_width);
    copy_rows(to + student_width, G::kStride, teacher, first, head, G::kChunk, length - row, G::W - student_width);
    ptx::cp_async_commit();
  };
  fetch(0, 0);
  for (int row = 0, buffer = 0; row < length; row += G::kChunk, buffer ^= 1) {
    ptx::cp_async_wait<0>();
    __syncthreads();  // this chunk is there for all, and the other buffer has been read by all
    if (row + G::kChunk < length) fetch(row + G::kChunk, buffer ^ 1);
    work(chunks + buffer * G::kChunkSize, row);
  }
  __syncthreads();
}

// This warp's 16 rows of X^T X.
template <class G, class T, int BS>
__device__ __forceinline__ void gram_rows(float (&sums)[G::kTiles][4], const T* chunk, int warp) {
  const bool teacher = warp >= BS / 16;
#pragma unroll
  for (int k = 0; k < G::kChunk; k += kDepth) {
    typename Mma<T>::A a;
    Mma<T>::load_a_transposed(a, chunk + k * G::kStride + 16 * warp, G::kStride);
#pragma unroll
    for (int n = 0; n < G::kTiles; n += 2) {
      if (n >= G::kStudentTiles && !teacher) continue;
      typename Mma<T>::B b[2];
      Mma<T>::load_b_transposed(b, chunk + k * G::kStride + 8 * n, G::kStride);
      Mma<T>::multiply(sums[n], a, b[0]);
      Mma<T>::multiply(sums[n + 1], a, b[1]);
    }
  }
}

template <class G, class T>
__device__ __forceinline__ void store_operand(T* gram, int row, int column, float value) {
  T* place = gram + row * G::kGramStride + column;
  from_float(value, *place);
  if constexpr (G::kHalves) from_float(value - to_float(*place), place[G::W * G::kGramStride]);
}

// chunk of X times G, 16 rows and half of the student's columns a warp, into a gradient.
template <class G, class T, int BS>
__device__ __forceinline__ void grad_rows(const T* chunk, const T* gram, Grad<T>* grad, int64_t stride, int rows,
                                          int dim, float scale, int warp) {
  constexpr int kColumns = BS / 2, kBlocks = G::kWarps / 2;
  static_assert(kColumns % 16 == 0, "pairs of tiles");
  const int block = warp % kBlocks, first = warp / kBlocks * kColumns;
  float sums[kColumns / 8][4] = {};
#pragma unroll
  for (int k = 0; k < G::W; k += kDepth) {
    typename Mma<T>::A a;
    Mma<T>::load_a(a, chunk + 16 * block * G::kStride + k, G::kStride);
#pragma unroll
    for (int n = 0; n < kColumns / 8; n += 2) {
      typename Mma<T>::B b[2];
      const T* place = gram + k * G::kGramStride + first + 8 * n;
      if constexpr (G::kHalves) {
        Mma<T>::load_b_transposed(b, place + G::W * G::kGramStride, G::kGramStride);
        Mma<T>::multiply(sums[n], a, b[0]);
        Mma<T>::multiply(sums[n + 1], a, b[1]);
      }
      Mma<T>::load_b_transposed(b, place, G::kGramStride);
      Mma<T>::multiply(sums[n], a, b[0]);
      Mma<T>::multiply(sums[n + 1], a, b[1]);
    }
  }
  store_rows(sums, grad, stride, 16 * block, rows, first, dim, scale);
}

template <class G>
__global__ void __launch_bounds__(G::kThreads) gram_kernel(const __grid_constant__ ScoreMse p) {
  using T = typename G::Number;
  constexpr int BS = G::kStudent, BT = G::kTeacher;
  BERTXFER_DYNAMIC_SHARED(T, chunks);
  T* k_gram = chunks + 2 * G::kChunkSize;
  T* q_gram = k_gram + G::kGramSize;
  float* q_teacher = reinterpret_cast<float*>(k_gram);  // [BT, BT]
  float* q_student = reinterpret_cast<float*>(q_gram);  // [W, BS]

  const int pair = blockIdx.x, head = pair % p.heads;
  const Span span = sequence_of(p.cu_seqlens, p.seqused, p.tokens, pair / p.heads);
  if (pair == 0 && threadIdx.x == 0) *p.ticket = 0;  // for the tiles, which come after this kernel
  // Which route a pair takes is decided here alone: whoever decided again could round in another way.
  const auto decide = [&](bool tiled, float loss) {
    if (threadIdx.x != 0) return;
    p.takes_tiles[pair] = tiled;
    p.partial_losses[pair] = tiled ? 0.0f : loss;
  };
  if (span.length <= p.tiled_up_to) return decide(true, 0.0f);
  const int warp = threadIdx.x / 32, group = threadIdx.x % 32 / 4, thread = threadIdx.x % 4;
  const bool teacher = warp >= BS / 16;
  // Calls work(n, i, row, column) for every number this lane holds of X^T X.
  const auto for_gram = [&](auto&& work) {
#pragma unroll
    for (int n = 0; n < G::kTiles; ++n) {
      if (n >= G::kStudentTiles && !teacher) continue;
#pragma unroll
      for (int i = 0; i < 4; ++i) work(n, i, 16 * warp + group + 8 * (i >> 1), 8 * n + 2 * thread + (i & 1));
    }
  };

  float gram[G::kTiles][4] = {};
  for_chunks<G>(chunks, p.q_student, p.q_teacher, span.start, span.length, head, BS,
                [&](const T* chunk, int) { gram_rows<G, T, BS>(gram, chunk, warp); });
  for_gram([&](int n, int i, int row, int column) {
    if (n < G::kStudentTiles) q_student[row * BS + column] = gram[n][i];
    if (n >= G::kStudentTiles) q_teacher[(row - BS) * BT + column - BS] = gram[n][i];
    gram[n][i] = 0.0f;
  });
  for_chunks<G>(chunks, p.k_student, p.k_teacher, span.start, span.length, head, BS,
                [&](const T* chunk, int) { gram_rows<G, T, BS>(gram, chunk, warp); });

  float within = 0.0f, across = 0.0f;  // of the student's, or of the teacher's columns
  for_gram([&](int n, int i, int row, int column) {
    if (n < G::kStudentTiles) across += gram[n][i] * q_student[row * BS + column];
    if (n >= G::kStudentTiles) within += gram[n][i] * q_teacher[(row - BS) * BT + column - BS];
  });
  const float ss = p.scale_student, st = p.scale_teacher;
  const float student = ss * ss * block_sum(teacher ? 0.0f : across);
  const float cross = ss * st * block_sum(teacher ? across : 0.0f);
  const float own = st * st * block_sum(within);
  const float loss = student - 2.0f * cross + own;
  const bool tiled = loss < kGuard * (student + own);
  decide(tiled, loss);
  if (tiled || p.grad_q == nullptr) return;

  // Both matrices become operands, as means over the tokens. Large means are beyond float16: it takes entries that are
  // at most 32768, as none is above the trace.
  __shared__ float divisors[2];  // of k's and q's; in shared memory, as registers are short
  if constexpr (std::is_same_v<T, __half>) {
    float q_trace = 0.0f, k_trace = 0.0f;
    const int i = threadIdx.x;
    if (i < G::W) q_trace = i < BS ? q_student[i * BS + i] : q_teacher[(i - BS) * BT + i - BS];
    for_gram([&](int n, int i, int row, int column) {
      if (row == column) k_trace += gram[n][i];
    });
    const float most = fmaxf(fabsf(ss), fabsf(st)) / 32768.0f;
    k_trace = block_sum(k_trace);
    q_trace = block_sum(q_trace);
    if (threadIdx.x == 0) {
      divisors[0] = fmaxf(most * k_trace, 1e-30f);
      divisors[1] = fmaxf(most * q_trace, 1e-30f);
    }
    __syncthreads();
  }
  const auto divisor_of = [&](int side) {
    if constexpr (std::is_same_v<T, __half>) return divisors[side];
    return static_cast<float>(span.length);
  };
  const auto scale_of = [&](int row, int side) { return 1.0f / divisor_of(side) * (row < BS ? ss : -st); };
  for_gram([&](int n, int i, int row, int column) {
    if (n < G::kStudentTiles) store_operand<G>(k_gram, row, column, scale_of(row, 0) * gram[n][i]);
  });
  for_gram([&](int n, int i, int row, int column) {
    if (n < G::kStudentTiles) gram[n][i] = q_student[row * BS + column];
  });
  __syncthreads();
  for_gram([&](int n, int i, int row, int column) {
    if (n < G::kStudentTiles) store_operand<G>(q_gram, row, column, scale_of(row, 1) * gram[n][i]);
  });
  __syncthreads();

  const int dim = p.q_student.dim;
  const int64_t stride = static_cast<int64_t>(p.heads) * dim;
  const int64_t place = static_cast<int64_t>(span.start) * stride + static_cast<int64_t>(head) * dim;
  const float loss_scale = loss_scale_of(p);
  const auto grad = [&](const RowSource& x_student, const RowSource& x_teacher, const T* operand, int side, void* to) {
    const float scale = 2.0f * ss * divisor_of(side) * loss_scale;
    for_chunks<G>(chunks, x_student, x_teacher, span.start, span.length, head, BS, [&](const T* chunk, int row) {
      grad_rows<G, T, BS>(chunk, operand, static_cast<Grad<T>*>(to) + place + row * stride, stride, span.length - row,
                          dim, scale, warp);
    });
  };
  grad(p.k_student, p.k_teacher, q_gram, 1, p.grad_k);  // the last chunks of k are the likeliest to be cached
  grad(p.q_student, p.q_teacher, k_gram, 0, p.grad_q);
}

}  // namespace bertxfer
