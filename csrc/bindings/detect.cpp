// Tells which instruction-set levels this processor runs. Compiled for the oldest processor of the
// family, so that it loads everywhere.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <initializer_list>
#include <string>
#include <vector>

#if defined(__x86_64__)
#  include <cpuid.h>
#endif

namespace {

#if defined(__x86_64__)
// Checks for the features of the x86-64 psABI levels, and that the system saves the registers which
// they use (XCR0: SSE and AVX; opmask and the ZMM halves).
struct Processor {
  unsigned ecx1 = 0, ebx7 = 0, ecx7 = 0, ecx_extended = 0;
  unsigned long long saved = 0;

  Processor() {
    unsigned a = 0, b = 0, c = 0, d = 0;
    if (__get_cpuid(1, &a, &b, &c, &d)) ecx1 = c;
    if (__get_cpuid_count(7, 0, &a, &b, &c, &d)) ebx7 = b, ecx7 = c;
    if (__get_cpuid(0x80000001u, &a, &b, &c, &d)) ecx_extended = c;
    if (ecx1 & (1u << 27)) {  // OSXSAVE: xgetbv is allowed
      unsigned low = 0, high = 0;
      __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
      saved = (static_cast<unsigned long long>(high) << 32) | low;
    }
  }

  static bool all(unsigned word, std::initializer_list<int> bits) {
    for (const int bit : bits)
      if (!(word >> bit & 1u)) return false;
    return true;
  }

  // SSE3, SSSE3, CMPXCHG16B, SSE4.1, SSE4.2, POPCNT; LAHF
  bool v2() const { return all(ecx1, {0, 9, 13, 19, 20, 23}) && all(ecx_extended, {0}); }
  // FMA, MOVBE, AVX, F16C; BMI1, AVX2, BMI2; LZCNT
  bool v3() const {
    return v2() && all(ecx1, {12, 22, 28, 29}) && all(ebx7, {3, 5, 8}) && all(ecx_extended, {5}) &&
           (saved & 0x6) == 0x6;
  }
  // AVX-512 F, DQ, CD, BW, VL
  bool v4() const { return v3() && all(ebx7, {16, 17, 28, 30, 31}) && (saved & 0xe6) == 0xe6; }
  // AVX-512 VBMI, VNNI
  bool v4_vnni() const { return v4() && all(ecx7, {1, 11}); }
};
#endif

std::vector<std::string> supported_levels() {
  std::vector<std::string> levels;
#if defined(__x86_64__)
  const Processor processor;
  if (processor.v4_vnni()) levels.emplace_back("v4_vnni");
  if (processor.v4()) levels.emplace_back("v4");
  if (processor.v3()) levels.emplace_back("v3");
  if (processor.v2()) levels.emplace_back("v2");
#else
  levels.emplace_back("baseline");
#endif
  return levels;
}

}  // namespace

PYBIND11_MODULE(_detect, m) {
  m.def("supported_levels", &supported_levels);
}
