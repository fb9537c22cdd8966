// BPE merges: which neighbouring pieces join into which, and in what order.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace spinfer {

struct Merge {
  uint32_t rank;   ///< the lowest rank is applied first; equal ranks from left to right
  int32_t result;  ///< id of the joined piece
};

/// (left id, right id) → Merge. Open addressing over one array: a lookup is one cache line most of the time.
class MergeTable {
 public:
  explicit MergeTable(size_t expected_merges);
  /// A pair given twice keeps its last merge, as in Hugging Face's implementation. Throws std::runtime_error
  /// (without a file name) for merges made so that they all fall into the same places.
  void insert(int32_t left, int32_t right, Merge merge);
  /// nullptr if the two do not merge.
  const Merge* find(int32_t left, int32_t right) const;

 private:
  struct Slot {
    uint64_t key;
    Merge merge;
  };
  size_t home_of(uint64_t key) const;  // where the search for it begins
  size_t slot_of(uint64_t key) const;
  void grow();

  std::vector<Slot> slots_;  // size a power of two, at most half full
  size_t used_ = 0;
};

/// Applies merges to a sequence of ids, best first. Keeps its work space between calls; one per thread.
class Merger {
 public:
  explicit Merger(const MergeTable& table) : table_(&table) {}
  /// Appends the merged `ids` to `out`. O(n log n) in the number of ids, whatever they are.
  void merge(std::span<const int32_t> ids, std::vector<int32_t>& out);

 private:
  struct Symbol {
    int32_t id;
    int32_t prev, next;  // index of the neighbour, -1 at the ends
    int32_t width;       // initial ids joined in here; 0: joined into another
  };
  struct Candidate {
    uint64_t order;  // rank in the upper half, left index in the lower: the smallest is next
    int32_t result;
    int32_t width;  // of both symbols when it was found; a differing width now means it is outdated
  };
  void add_candidate(int32_t left);

  const MergeTable* table_;
  std::vector<Symbol> symbols_;
  std::vector<Candidate> heap_;
};

}  // namespace spinfer
