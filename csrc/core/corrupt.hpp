#pragma once
#include <stdexcept>

namespace ff {

// Stored bytes that contradict themselves. Bindings show it as fastfactor.CorruptDataError.
struct CorruptData : std::runtime_error {
  using std::runtime_error::runtime_error;
};

}  // namespace ff
