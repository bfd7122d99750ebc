#pragma once
#include <algorithm>
#include <cmath>
#include <vector>

#include "kernels/omp/atoms.hpp"

// Blocks of rows and the correlations of every atom with them.
namespace ff {

// Returns how many rows a block has: their x and α together take about a quarter of an L2 cache of
// 1 MB, so that the panels are read once a block and not once a tile.
template <class T>
index rows_per_block(const Atoms<T>& atoms) {
  const index bytes = (atoms.depth() + atoms.ld()) * index(sizeof(T));
  return std::clamp<index>((index(256) << 10) / bytes / kTileRows, 1, 64) * kTileRows;
}

// One worker's block: the rows, scaled to magnitude 1 and laid out in tiles, and α = D·x of each.
template <class T>
class Answers {
 public:
  using Tile = SideBySide<kTileRows>;

  Answers(const MatrixView& x, const Atoms<T>& atoms, index block)
      : x_(x),
        atoms_(atoms),
        row_(atoms.depth()),
        rows_(block / kTileRows * Tile::size(atoms.depth())),
        alpha_(block * atoms.ld()),
        scale_(block),
        norm2_(block) {}

  // Loads rows [first, first + n) and computes their α. Throws std::invalid_argument if one of them
  // is not finite.
  void compute(index first, index n) {
    load(first, n);
    multiply(n);
  }

  T* alpha(index r) { return alpha_.data() + r * atoms_.ld(); }
  const T* row(index r) const { return rows_.data() + place(r); }  // element k at Tile::at(k)
  T scale(index r) const { return scale_[r]; }
  double norm2(index r) const { return norm2_[r]; }
  const double* norms2(index r) const { return norm2_.data() + r; }

 private:
  void load(index first, index n) {
    const index depth = atoms_.depth();
    for (index r = 0; r < n; ++r) {
      load_row(x_, first + r, row_.data());
      scale_[r] = exact_scale(largest_magnitude(row_.data(), depth));
      norm2_[r] = put_row(r, scale_[r]);
      if (!std::isfinite(norm2_[r])) throw_not_finite(x_, first + r, "X");
    }
    std::fill(row_.begin(), row_.end(), T(0));
    for (index r = n; r < round_up(n, kTileRows); ++r) put_row(r, 1);
  }

  // Writes row_ times scale as row r of the tiles; returns its squared norm.
  double put_row(index r, T scale) {
    double norm2 = 0;
    for (index k = 0; k < atoms_.depth(); k += kDepthPart) {
      const index n = std::min(kDepthPart, atoms_.depth() - k);
      const T* from = row_.data() + k;
      T* to = rows_.data() + place(r) + Tile::at(k);
      for (index i = 0; i < n; ++i) to[i] = from[i] * scale;
      norm2 += squared_norm(to, n);
    }
    return norm2;
  }

  void multiply(index n) {
    const index ld = atoms_.ld(), padded = atoms_.panels().padded();
    for (index p = 0; p < atoms_.panels().n_panels(); ++p)
      for (index r = 0; r < n; r += kTileRows)
        atoms_.template multiply_panel<kTileRows, Tile>(row(r), p, alpha(r));
    for (index r = 0; r < n; ++r) std::fill(alpha(r) + padded, alpha(r) + ld, T(0));
  }

  index place(index r) const {
    return r / kTileRows * Tile::size(atoms_.depth()) + r % kTileRows * Tile::kRow;
  }

  const MatrixView& x_;
  const Atoms<T>& atoms_;
  std::vector<T> row_;
  Buffer<T> rows_, alpha_;
  std::vector<T> scale_;
  std::vector<double> norm2_;
};

}  // namespace ff
