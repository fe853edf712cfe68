#include "isa.h"

#include <cstdlib>
#include <cstring>
#include <initializer_list>

namespace bertxfer {
namespace {

Isa supported() {
#if defined(BERTXFER_X86)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl")) {
    return Isa::avx512;
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return Isa::avx2;
#endif
  return Isa::baseline;
}

Isa detect() {
  const Isa best = supported();
  const char* asked = std::getenv("BERTXFER_ISA");
  if (asked == nullptr) return best;
  for (Isa isa : {Isa::baseline, Isa::avx2, Isa::avx512}) {
    if (std::strcmp(asked, isa_name(isa)) == 0 && isa < best) return isa;
  }
  return best;
}

}  // namespace

Isa current_isa() {
  static const Isa isa = detect();
  return isa;
}

const char* isa_name(Isa isa) {
  switch (isa) {
    case Isa::avx512: return "avx512";
    case Isa::avx2: return "avx2";
    default: return "baseline";
  }
}

const char* compiled_isas() {
#if defined(BERTXFER_X86)
  return "baseline,avx2,avx512";
#else
  return "baseline";
#endif
}

}  // namespace bertxfer
