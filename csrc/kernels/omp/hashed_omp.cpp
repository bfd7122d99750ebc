// Orthogonal matching pursuit among the atoms found by locality-sensitive hashing. P. Indyk, R.
// Motwani (1998); M. Charikar (2002); A. Andoni et al. (2015) for hashing angles by rotations; A.
// Becker, L. Ducas, N. Gama, T. Laarhoven (2016) for looking into all buckets whose directions are
// near enough; Pati, Rezaiifar, Krishnaprasad (1993) for the pursuit.
//
// Rows go through a step together, in blocks: first each row asks which buckets are near its
// residual, then each bucket is multiplied with all rows that asked for it. So the few atoms of a
// bucket are read once a block, and the products run in full tiles at the speed of a dense product.
#include "kernels/omp/hashed_omp.hpp"

#include <cmath>
#include <memory>
#include <numeric>

#include "kernels/omp/codes.hpp"
#include "kernels/omp/early.hpp"
#include "kernels/omp/hash_tables.hpp"
#include "kernels/omp/support.hpp"

namespace ff {
namespace {

template <class T>
constexpr int kLanes = simd::kLanes<T>;

// The rows of all atoms, with the atom numbers of their panels' columns.
template <class T>
struct ListedRows : AtomRows<T> {
  ListedRows(const Atoms<T>& atoms, int n_threads, Stop& stop)
      : AtomRows<T>(atoms, n_threads, stop), ids(atoms.panels().padded()) {
    std::iota(ids.data(), ids.data() + ids.size(), 0);
  }

  Buffer<std::int32_t> ids;
};

// A row's best atom so far; −1 if there is none.
template <class T>
struct BestAtom {
  T score = 0;
  std::int32_t atom = -1;
};

template <class T>
class HashedWorker {
 public:
  HashedWorker(const MatrixView& x, const Atoms<T>& atoms, const ListedRows<T>& rows,
               const HashTables<T>* tables, const HashedOmpOptions& options, index block)
      : x_(x),
        atoms_(atoms),
        ld_(rows.ld),
        all_{atoms.panels().panel(0), rows.ids.data(), atoms.panels().n_panels() * kPanelVectors},
        tables_(tables),
        options_(options),
        supports_(rows.data.data(), ld_, block, options.max_nonzeros),
        signals_(block * ld_),
        residuals_(block * ld_),
        tile_(Tile::size(atoms.depth())),
        scores_(kTileRows * kColumnsAtOnce),
        turned_(tables ? round_up(block, kLanes<T>) * tables->size() : 0),
        asking_(tables ? tables->n_buckets() * room(block) : 0),
        n_asking_(tables ? tables->n_buckets() : 0),
        ask_room_(room(block)),
        scale_(block),
        norm2_(block),
        left2_(block),
        tol_(block),
        best_(block) {}

  static index bytes_per_row(index ld, const HashTables<T>* tables, index most) {
    return 2 * ld * index(sizeof(T)) + Supports<T>::bytes_per_row(most) +
           (tables ? (tables->size() + tables->n_buckets()) * index(sizeof(T)) : 0);
  }

  void code(index first, index n, std::int64_t* counts, Ended* ended, BlockCodes<T>& codes,
            Stop& stop) {
    load(first, n);
    while (!active_.empty()) {
      step(ended, stop);
      if (stop.requested()) return;
    }
    for (index r = 0; r < n; ++r) {
      counts[r] = supports_.count(r);
      const auto to = codes.append(counts[r]);
      supports_.result(r, double(atoms_.scale()) / double(scale_[r]), to.indices, to.data);
    }
  }

 private:
  using I = simd::Int<T>;
  using Bucket = typename HashTables<T>::Bucket;
  using Tile = SideBySide<kTileRows>;
  static constexpr index kVectorsAtOnce = 16, kColumnsAtOnce = kVectorsAtOnce * kLanes<T>;

  static index room(index block) { return round_up(block, kLanes<T>) + kLanes<T>; }

  void load(index first, index n) {
    active_.clear();
    for (index r = 0; r < n; ++r) {
      T* x = signals_.data() + r * ld_;
      load_row(x_, first + r, x);
      scale_[r] = exact_scale(largest_magnitude(x, atoms_.depth()));
      for (index k = 0; k < atoms_.depth(); ++k) x[k] *= scale_[r];
      std::fill(x + atoms_.depth(), x + ld_, T(0));
      norm2_[r] = left2_[r] = wide_product(x, x, ld_);
      if (!std::isfinite(norm2_[r])) throw_not_finite(x_, first + r, "X");
      std::copy_n(x, ld_, residuals_.data() + r * ld_);
      tol_[r] = options_.tol < 0 ? -1 : options_.tol * double(scale_[r]) * double(scale_[r]);
      supports_.clear(r);
      if (goes_on(r)) active_.push_back(I(r));
    }
  }

  bool goes_on(index r) const {
    return norm2_[r] > 0 && supports_.count(r) < options_.max_nonzeros && left2_[r] > tol_[r];
  }

  // Adds one atom to every active row.
  void step(Ended* ended, Stop& stop) {
    for (const I r : active_) best_[r] = {};
    if (tables_) look_into_buckets(stop);
    if (stop.requested()) return;
    missed_.clear();
    for (const I r : active_)
      if (!take(r)) missed_.push_back(r);
    // For rows that could use no atom of their buckets: look at all atoms; a row ends if none of
    // these can be used.
    for (const I r : missed_) best_[r] = {};
    look_into(all_, missed_.data(), index(missed_.size()), stop);
    if (stop.requested()) return;
    for (const I r : missed_)
      if (!take(r)) left2_[r] = -1, ended[r] = Ended::early;
    const auto done = [&](I r) { return !goes_on(r); };
    active_.erase(std::remove_if(active_.begin(), active_.end(), done), active_.end());
  }

  bool take(index r) {
    const auto [score, s] = best_[r];
    const T* x = signals_.data() + r * ld_;
    if (s < 0 || !atoms_.answers(s, double(score), norm2_[r], supports_.count(r)) ||
        !supports_.add(r, s, x))
      return false;
    left2_[r] = supports_.residual(r, x, residuals_.data() + r * ld_);
    return true;
  }

  void look_into_buckets(Stop& stop) {
    constexpr int lanes = kLanes<T>;
    const index n = index(active_.size()), n_groups = ceil_div(n, lanes);
    const index size = tables_->size() * lanes;
    for (index g = 0; g < n_groups; ++g) {
      const index members = std::min<index>(lanes, n - g * lanes);
      const T* rows[lanes];
      for (index i = 0; i < members; ++i)
        rows[i] = residuals_.data() + active_[g * lanes + i] * ld_;
      tables_->start(rows, members, turned_.data() + g * size);
    }
    active_.resize(round_up(n, lanes), I(0));  // filled up to a whole vector
    for (index t = 0; t < tables_->n_tables(); ++t) {
      std::fill(n_asking_.begin(), n_asking_.end(), 0);
      for (index g = 0; g < n_groups; ++g) ask(t, g, n, turned_.data() + g * size);
      for (index b = 0; b < tables_->n_buckets(); ++b)
        look_into(tables_->bucket(t, b), asking_.data() + b * ask_room_, n_asking_[b], stop);
    }
    active_.resize(n);
  }

  // Puts each row of a group on the lists of the buckets near it.
  void ask(index t, index g, index n, T* z) {
    constexpr int lanes = kLanes<T>;
    alignas(simd::kBytes) T least[lanes];
    for (index i = 0; i < lanes; ++i) {
      const index at = g * lanes + i;
      least[i] = at < n ? T(options_.threshold * std::sqrt(left2_[active_[at]]))
                        : std::numeric_limits<T>::infinity();
    }
    const simd::Vec<T> far = simd::load(least);
    const simd::Vec<I> ids = simd::load(active_.data() + g * lanes);
    I* lists = asking_.data();
    index* lengths = n_asking_.data();
    tables_->each_direction(t, z, [=, room = ask_room_](index b, simd::Vec<T> near) {
      const unsigned bits = simd::mask_bits(simd::Vec<I>(near >= far));
      if (bits) lengths[b] += simd::compress(lists + b * room + lengths[b], ids, bits);
    });
  }

  // Compares the atoms of a bucket with n rows.
  void look_into(const Bucket& bucket, const I* rows, index n, Stop& stop) {
    if (bucket.vectors == 0) return;
    for (index at = 0; at < n && !stop.requested(); at += kTileRows) {
      const index height = std::min<index>(kTileRows, n - at);
      for (index i = 0; i < height; ++i) {
        const T* from = residuals_.data() + rows[at + i] * ld_;
        for (index k = 0; k < atoms_.depth(); k += kDepthPart)
          std::copy_n(from + k, std::min(kDepthPart, atoms_.depth() - k),
                      tile_.data() + i * Tile::kRow + Tile::at(k));
      }
      if (height > kTileRows / 2) {
        look_into<kTileRows>(bucket, rows + at, height);
      } else {
        look_into<kTileRows / 2>(bucket, rows + at, height);
      }
    }
  }

  template <int R>
  void look_into(const Bucket& bucket, const I* rows, index n) {
    for (index v = 0; v < bucket.vectors; v += kVectorsAtOnce) {
      const index end = std::min(v + kVectorsAtOnce, bucket.vectors);
      simd::Vec<T> most[R] = {};
      index at = v;
      for (; at + kPanelVectors <= end; at += kPanelVectors)
        score<kPanelVectors>(bucket, at, at - v, most);
      if (at < end) score<1>(bucket, at, at - v, most);
      for (index r = 0; r < n; ++r)
        update(best_[rows[r]], most[r], scores_.data() + r * kColumnsAtOnce,
               bucket.ids + v * kLanes<T>);
    }
  }

  // Computes the scores of R rows with a panel V vectors wide, and the largest score in each lane.
  template <int V, int R>
  void score(const Bucket& bucket, index first, index to, simd::Vec<T> (&most)[R]) {
    simd::Vec<T> acc[R][V] = {};
    panel_product<R, Tile>(tile_.data(), bucket.data + first * atoms_.depth() * kLanes<T>,
                           atoms_.depth(), acc);
    T* scores = scores_.data() + to * kLanes<T>;
#pragma GCC unroll 12
    for (int r = 0; r < R; ++r) {
      for (int v = 0; v < V; ++v) {
        const simd::Vec<T> score = simd::abs(acc[r][v]);
        simd::store(scores + r * kColumnsAtOnce + v * kLanes<T>, score);
        most[r] = simd::max(most[r], score);
      }
    }
  }

  // Ties go to the lowest atom, so the order of the buckets does not matter.
  static void update(BestAtom<T>& best, simd::Vec<T> most, const T* scores,
                     const std::int32_t* ids) {
    if (!simd::mask_bits(simd::Vec<I>(most >= simd::splat(best.score)))) return;
    const T top = simd::reduce_max<T>(most);
    if (!(top > 0)) return;
    index at = 0;
    while (scores[at] != top) ++at;
    if (top > best.score || best.atom < 0 || ids[at] < best.atom) best = {top, ids[at]};
  }

  const MatrixView& x_;
  const Atoms<T>& atoms_;
  const index ld_;
  const Bucket all_;
  const HashTables<T>* tables_;
  const HashedOmpOptions& options_;
  Supports<T> supports_;
  Buffer<T> signals_, residuals_, tile_, scores_;
  Buffer<T> turned_;  // the active rows' residuals after the rotations so far
  Buffer<I> asking_;  // for each bucket of a table, the rows that look into it
  std::vector<index> n_asking_;
  const index ask_room_;
  std::vector<I> active_, missed_;
  std::vector<T> scale_;
  std::vector<double> norm2_, left2_, tol_;  // ‖x‖², ‖r‖², and the ‖r‖² at which a row stops
  std::vector<BestAtom<T>> best_;
};

}  // namespace

template <class T>
SparseRows<T> hashed_omp(const MatrixView& x, const MatrixView& dictionary,
                         const HashedOmpOptions& requested, Stop& stop) {
  HashedOmpOptions options = requested;
  options.max_nonzeros = std::min({options.max_nonzeros, dictionary.rows, dictionary.cols});
  const Atoms<T> atoms(dictionary, nullptr, false, options.n_threads, stop);
  const ListedRows<T> rows(atoms, options.n_threads, stop);
  std::unique_ptr<HashTables<T>> tables;
  if (options.n_bits > 0)
    tables = std::make_unique<HashTables<T>>(rows.data.data(), rows.ld, atoms.count(),
                                             atoms.depth(), options.n_tables, options.n_bits,
                                             options.seed, options.n_threads, stop);
  stop.throw_if_requested();

  constexpr index kBytes = index(64) << 20, kWidened = 8 * kBytes, kMostRows = index(1) << 14,
                  kTasks = 8;
  // One row with many atoms enlarges the storage of all rows of its block.
  const index fit =
      std::min(kBytes / HashedWorker<T>::bytes_per_row(rows.ld, tables.get(), options.max_nonzeros),
               kWidened / Supports<T>::most_bytes_per_row(options.max_nonzeros));
  const index block =
      round_up(std::clamp(std::min(fit, ceil_div(x.rows, kTasks)), index(1), kMostRows), kTileRows);
  std::vector<std::unique_ptr<HashedWorker<T>>> workers(options.n_threads);
  const bool full = options.tol < 0 && 2 * options.max_nonzeros <= x.cols;
  Codes<T> codes(x.rows, block, options.max_nonzeros, full);
  std::vector<Ended> ended(x.rows, Ended::as_asked);
  parallel_for(ceil_div(x.rows, block), options.n_threads, stop, [&](index b, int worker) {
    auto& mine = workers[worker];
    if (!mine)
      mine = std::make_unique<HashedWorker<T>>(x, atoms, rows, tables.get(), options, block);
    const index first = b * block;
    mine->code(first, std::min(block, x.rows - first), codes.counts() + first, ended.data() + first,
               codes.block(b), stop);
  });
  return ended_as_asked(std::move(codes).join(options.n_threads, stop), x, dictionary, ended,
                        sizeof(T) == 8, options.n_threads, stop, [&](const MatrixView& left) {
                          return hashed_omp<double>(left, dictionary, options, stop);
                        });
}

template SparseRows<float> hashed_omp(const MatrixView&, const MatrixView&, const HashedOmpOptions&,
                                      Stop&);
template SparseRows<double> hashed_omp(const MatrixView&, const MatrixView&,
                                       const HashedOmpOptions&, Stop&);

}  // namespace ff
