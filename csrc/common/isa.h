// One kernel source, several instruction sets, the choice made at run time.
//
// Every <op>_cpu.cpp is compiled once per instruction set with BERTXFER_ISA set to its name, and puts its kernel
// in the namespace of that name. BERTXFER_KERNEL(fn, Params) declares all copies, and DISPATCH(fn) picks the
// best one that this processor runs. A kernel takes plain pointers and includes no torch header, so that nothing
// compiled for a newer processor can leak into code that every processor runs.
#pragma once

namespace bertxfer {

enum class Isa { baseline, avx2, avx512 };

// The best instruction set that is compiled in, supported here and not ruled out by BERTXFER_ISA.
Isa current_isa();

// "baseline", "avx2", "avx512"
const char* isa_name(Isa isa);

// Comma-separated names of what is compiled in.
const char* compiled_isas();

}  // namespace bertxfer

#if defined(BERTXFER_X86)
#define BERTXFER_KERNEL(fn, ...) \
  namespace baseline {           \
  void fn(__VA_ARGS__);          \
  }                              \
  namespace avx2 {               \
  void fn(__VA_ARGS__);          \
  }                              \
  namespace avx512 {             \
  void fn(__VA_ARGS__);          \
  }
#define BERTXFER_DISPATCH(fn)                                        \
  (::bertxfer::current_isa() == ::bertxfer::Isa::avx512 ? avx512::fn \
   : ::bertxfer::current_isa() == ::bertxfer::Isa::avx2 ? avx2::fn   \
                                                        : baseline::fn)
#else
#define BERTXFER_KERNEL(fn, ...) \
  namespace baseline {           \
  void fn(__VA_ARGS__);          \
  }
#define BERTXFER_DISPATCH(fn) (baseline::fn)
#endif
