// One kernel source compiled for several instruction sets, one of which is chosen at run time.
//
// Every <op>_cpu.cpp is compiled once per instruction set with BERTXFER_ISA set to its name, and puts its kernel
// in the namespace of that name. BERTXFER_KERNEL(fn, Params) declares all copies, and BERTXFER_DISPATCH(fn) picks the
// best one that this processor runs. A kernel takes plain pointers and includes no torch header, so that nothing
// compiled for a newer processor can leak into code that every processor runs.
#pragma once

namespace bertxfer {

enum class Isa { baseline, avx2, avx512, avx512_bf16, amx };

// The best instruction set that is compiled in, supported here and not ruled out by the environment's BERTXFER_ISA.
Isa current_isa();

// "baseline", "avx2", "avx512", "avx512_bf16", "amx"
const char* isa_name(Isa isa);

// Comma-separated names of what is compiled in.
const char* compiled_isas();

template <class Kernel>
Kernel* pick(Kernel* baseline, Kernel* avx2, Kernel* avx512, Kernel* avx512_bf16, Kernel* amx) {
  Kernel* const kernels[] = {baseline, avx2, avx512, avx512_bf16, amx};
  return kernels[static_cast<int>(current_isa())];
}

}  // namespace bertxfer

#define BERTXFER_DECLARE(isa, fn, ...) \
  namespace isa {                      \
  void fn(__VA_ARGS__);                \
  }

#if defined(BERTXFER_X86)
#define BERTXFER_KERNEL(fn, ...)                 \
  BERTXFER_DECLARE(baseline, fn, __VA_ARGS__)    \
  BERTXFER_DECLARE(avx2, fn, __VA_ARGS__)        \
  BERTXFER_DECLARE(avx512, fn, __VA_ARGS__)      \
  BERTXFER_DECLARE(avx512_bf16, fn, __VA_ARGS__) \
  BERTXFER_DECLARE(amx, fn, __VA_ARGS__)
#define BERTXFER_DISPATCH(fn) (::bertxfer::pick(baseline::fn, avx2::fn, avx512::fn, avx512_bf16::fn, amx::fn))
#else
#define BERTXFER_KERNEL(fn, ...) BERTXFER_DECLARE(baseline, fn, __VA_ARGS__)
#define BERTXFER_DISPATCH(fn) (baseline::fn)
#endif
