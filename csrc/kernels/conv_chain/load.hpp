#pragma once
#include <cstring>
#include <vector>

#include "core/rows.hpp"
#include "core/simd.hpp"
#include "kernels/conv_chain/layout.hpp"

// Copies what a block needs of an image into planes: padded, widened, split into phases.
namespace ff::conv {

inline void fill_zeros(float* to, index n) {
  for (; n > 0; n -= simd::kLanes<float>, to += simd::kLanes<float>)
    simd::store_lanes(to, simd::Vec<float>{}, 0, int(std::min<index>(n, simd::kLanes<float>)));
}

// to[i] = from[2 i], without reading what follows from[2 (n − 1)].
inline void copy_every_second(const float* from, index n, float* to) {
  constexpr index kWidth = simd::kLanes<float>;
  if (n <= kWidth) {
    for (index i = 0; i < n; ++i) to[i] = from[2 * i];
    return;
  }
  for (index i = 0; i + kWidth < n; i += kWidth)
    simd::store(to + i,
                simd::every_other<0>(simd::load(from + 2 * i), simd::load(from + 2 * i + kWidth)));
  const float* last = from + 2 * (n - kWidth) - 1;
  simd::store(to + n - kWidth, simd::every_other<1>(simd::load(last), simd::load(last + kWidth)));
}

class ImageLoader {
 public:
  ImageLoader(const ImagesView& x, const Axis& rows, const Axis& columns, const Layout& layout,
              index plane_pitch)
      : x_(x), rows_(rows), columns_(columns), layout_(layout), pitch_(plane_pitch) {}

  // Fills the planes of all channels for the block whose first output is this one.
  void load(index image, index first_row, index first_column, float* planes) const {
    const std::vector<Stretch> stretches = stretches_from(first_column);
    for (index c = 0; c < x_.shape[1]; ++c, planes += pitch_) {
      const MatrixView channel{x_.data + image * x_.strides[0] + c * x_.strides[1],
                               x_.dtype,
                               x_.shape[2],
                               x_.shape[3],
                               x_.strides[2],
                               x_.strides[3]};
      Rows<float> rows(channel);
      for (index phase = 0; phase < layout_.row_phases; ++phase)
        for (index at = 0; at < layout_.rows; ++at) {
          const index y = rows_.element(first_row, phase, at);
          float* to = planes + phase * layout_.row_phase() + at * layout_.columns;
          if (y >= 0 && y < rows_.size) copy_row(rows[y], stretches, to);
          else clear_row(to);
        }
    }
  }

 private:
  // Places [begin, end) of a phase lie in the image, from column `from` on.
  struct Stretch {
    index begin, end, from;
  };

  std::vector<Stretch> stretches_from(index first_column) const {
    std::vector<Stretch> stretches;
    for (index phase = 0; phase < layout_.column_phases; ++phase) {
      Stretch s{0, layout_.columns, 0};
      const auto column = [&](index at) { return columns_.element(first_column, phase, at); };
      while (s.begin < s.end && column(s.begin) < 0) ++s.begin;
      while (s.end > s.begin && column(s.end - 1) >= columns_.size) --s.end;
      s.from = column(s.begin);
      stretches.push_back(s);
    }
    return stretches;
  }

  void clear_row(float* to) const {
    for (index phase = 0; phase < layout_.column_phases; ++phase)
      fill_zeros(to + phase * layout_.column_phase(), layout_.columns);
  }

  void copy_row(const float* row, const std::vector<Stretch>& stretches, float* to) const {
    for (const Stretch& s : stretches) {
      fill_zeros(to, s.begin);
      fill_zeros(to + s.end, layout_.columns - s.end);
      const index n = s.end - s.begin;
      if (columns_.stride == 1) {
        std::memcpy(to + s.begin, row + s.from, std::size_t(n) * sizeof(float));
      } else if (columns_.stride == 2) {
        copy_every_second(row + s.from, n, to + s.begin);
      } else {
        for (index i = 0; i < n; ++i) to[s.begin + i] = row[s.from + i * columns_.stride];
      }
      to += layout_.column_phase();
    }
  }

  const ImagesView& x_;
  const Axis& rows_;
  const Axis& columns_;
  const Layout layout_;
  const index pitch_;
};

}  // namespace ff::conv
