#pragma once
#include <initializer_list>
#include <vector>

#if defined(__x86_64__)
#  include <cpuid.h>
#endif

// Detects which instruction-set levels this processor runs. It is compiled for the oldest processor
// of the family, because it decides whether anything else may be loaded.
namespace ff {

#if defined(__x86_64__)
// Checks for the features of the x86-64 psABI levels, and that the system saves the registers which
// they use (XCR0: SSE and AVX; opmask and the ZMM halves).
class Processor {
 public:
  Processor() {
    unsigned a = 0, b = 0, c = 0, d = 0;
    if (__get_cpuid(1, &a, &b, &c, &d)) ecx1_ = c;
    if (__get_cpuid_count(7, 0, &a, &b, &c, &d)) ebx7_ = b, ecx7_ = c;
    if (__get_cpuid(0x80000001u, &a, &b, &c, &d)) ecx_extended_ = c;
    if (ecx1_ & (1u << 27)) {  // OSXSAVE: xgetbv is allowed
      unsigned low = 0, high = 0;
      __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
      saved_ = (static_cast<unsigned long long>(high) << 32) | low;
    }
  }

  // SSE3, SSSE3, CMPXCHG16B, SSE4.1, SSE4.2, POPCNT; LAHF
  bool v2() const { return all(ecx1_, {0, 9, 13, 19, 20, 23}) && all(ecx_extended_, {0}); }
  // FMA, MOVBE, AVX, F16C; BMI1, AVX2, BMI2; LZCNT
  bool v3() const {
    return v2() && all(ecx1_, {12, 22, 28, 29}) && all(ebx7_, {3, 5, 8}) &&
           all(ecx_extended_, {5}) && (saved_ & 0x6) == 0x6;
  }
  // AVX-512 F, DQ, CD, BW, VL
  bool v4() const { return v3() && all(ebx7_, {16, 17, 28, 30, 31}) && (saved_ & 0xe6) == 0xe6; }
  // AVX-512 VBMI, VNNI
  bool v4_vnni() const { return v4() && all(ecx7_, {1, 11}); }

 private:
  static bool all(unsigned word, std::initializer_list<int> bits) {
    for (const int bit : bits)
      if (!(word >> bit & 1u)) return false;
    return true;
  }

  unsigned ecx1_ = 0, ebx7_ = 0, ecx7_ = 0, ecx_extended_ = 0;
  unsigned long long saved_ = 0;
};
#endif

// The levels that this processor runs, best first.
inline std::vector<const char*> supported_levels() {
  std::vector<const char*> levels;
#if defined(__x86_64__)
  const Processor processor;
  if (processor.v4_vnni()) levels.push_back("v4_vnni");
  if (processor.v4()) levels.push_back("v4");
  if (processor.v3()) levels.push_back("v3");
  if (processor.v2()) levels.push_back("v2");
#else
  levels.push_back("baseline");
#endif
  return levels;
}

}  // namespace ff
