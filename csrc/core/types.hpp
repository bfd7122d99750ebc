#pragma once
#include <cstddef>
#include <cstdint>

namespace ff {

using index = std::ptrdiff_t;

inline constexpr index ceil_div(index a, index b) {
  return (a + b - 1) / b;
}
inline constexpr index round_up(index a, index b) {
  return ceil_div(a, b) * b;
}

}  // namespace ff
