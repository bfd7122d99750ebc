// Run while configuring: prints the levels of the processor that builds, best first.
#include <cstdio>

#include "core/levels.hpp"

int main() {
  for (const char* level : ff::supported_levels()) std::printf("%s;", level);
}
