#include "isa.h"

#include <cstdlib>
#include <cstring>

#if defined(BERTXFER_X86)
#include <cpuid.h>
#endif
#if defined(BERTXFER_X86) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace bertxfer {
namespace {

constexpr Isa kIsas[] = {Isa::baseline, Isa::avx2, Isa::avx512, Isa::avx512_bf16, Isa::amx};

#if defined(BERTXFER_X86)

bool has_avx512_bf16() {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  return __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) != 0 && (eax >> 5 & 1) != 0;
}

// Tiles are 8 KB of state per thread, which Linux keeps only for processes that have asked for it.
bool has_amx() {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  if (__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) == 0) return false;
  const bool bf16 = (edx >> 22 & 1) != 0, tile = (edx >> 24 & 1) != 0;
#if defined(__linux__)
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  return bf16 && tile && syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}

Isa supported() {
  __builtin_cpu_init();
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return Isa::baseline;
  if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") ||
      !__builtin_cpu_supports("avx512dq") || !__builtin_cpu_supports("avx512vl")) {
    return Isa::avx2;
  }
  if (!has_avx512_bf16()) return Isa::avx512;
  return has_amx() ? Isa::amx : Isa::avx512_bf16;
}

#else

Isa supported() {
  return Isa::baseline;
}

#endif

Isa detect() {
  const Isa best = supported();
  const char* asked = std::getenv("BERTXFER_ISA");
  if (asked == nullptr) return best;
  for (Isa isa : kIsas) {
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
    case Isa::amx: return "amx";
    case Isa::avx512_bf16: return "avx512_bf16";
    case Isa::avx512: return "avx512";
    case Isa::avx2: return "avx2";
    default: return "baseline";
  }
}

const char* compiled_isas() {
#if defined(BERTXFER_X86)
  return "baseline,avx2,avx512,avx512_bf16,amx";
#else
  return "baseline";
#endif
}

}  // namespace bertxfer
