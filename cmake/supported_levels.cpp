// Runs during configuration: prints the levels that this processor supports, best first.
#include <cstdio>

#include "core/levels.hpp"

int main() {
  for (const char* level : ff::supported_levels()) std::printf("%s;", level);
}
