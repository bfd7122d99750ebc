#pragma once
#include <cstdlib>
#include <limits>
#include <memory>
#include <new>

#include "core/types.hpp"

namespace ff {

inline constexpr std::size_t kCacheLine = 64;

// An owning array that begins on a cache line, with contents unset. Kernels use it for packed
// operands, scratch memory and results: std::vector would write every byte twice.
template <class T>
class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(index size) : data_(allocate(size)), size_(size) {}

  T* data() { return data_.get(); }
  const T* data() const { return data_.get(); }
  index size() const { return size_; }
  T& operator[](index i) { return data_.get()[i]; }
  const T& operator[](index i) const { return data_.get()[i]; }

 private:
  struct Free {
    void operator()(T* p) const { ::operator delete[](p, std::align_val_t{kCacheLine}); }
  };

  static T* allocate(index size) {
    if (size < 0 || size > std::numeric_limits<index>::max() / index(sizeof(T)))
      throw std::bad_alloc();
    return static_cast<T*>(
        ::operator new[](std::size_t(size) * sizeof(T), std::align_val_t{kCacheLine}));
  }

  std::unique_ptr<T[], Free> data_;
  index size_ = 0;
};

}  // namespace ff
