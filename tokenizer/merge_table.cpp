#include "tokenizer/merge_table.h"

#include <algorithm>
#include <bit>
#include <stdexcept>

namespace spinfer {
namespace {

constexpr uint64_t kEmpty = ~uint64_t{0};  // no pair of ids: they are not negative
// Slots looked at for one pair. In a table half full of real merges the longest search has some tens.
constexpr size_t kMaxProbes = 4096;

uint64_t key_of(int32_t left, int32_t right) {
  return (uint64_t{static_cast<uint32_t>(left)} << 32) | static_cast<uint32_t>(right);
}

}  // namespace

MergeTable::MergeTable(size_t expected_merges)
    : slots_(std::bit_ceil(std::max<size_t>(16, 2 * expected_merges)), Slot{kEmpty, {}}) {}

size_t MergeTable::slot_of(uint64_t key) const {
  const size_t mask = slots_.size() - 1;
  size_t slot = home_of(key);
  while (slots_[slot].key != key && slots_[slot].key != kEmpty) slot = (slot + 1) & mask;
  return slot;
}

size_t MergeTable::home_of(uint64_t key) const {
  // Fibonacci hashing: the upper bits of the product depend on all bits of the key.
  return (key * 0x9E3779B97F4A7C15u >> 20) & (slots_.size() - 1);
}

void MergeTable::grow() {
  std::vector<Slot> old(2 * slots_.size(), Slot{kEmpty, {}});
  old.swap(slots_);
  for (const Slot& slot : old) {
    if (slot.key != kEmpty) slots_[slot_of(slot.key)] = slot;
  }
}

void MergeTable::insert(int32_t left, int32_t right, Merge merge) {
  if (2 * (used_ + 1) > slots_.size()) grow();
  const uint64_t key = key_of(left, right);
  const size_t at = slot_of(key);
  if (((at - home_of(key)) & (slots_.size() - 1)) > kMaxProbes)
    throw std::runtime_error("too many merges fall into the same places of the table");
  Slot& slot = slots_[at];
  if (slot.key == kEmpty) ++used_;
  slot = {key, merge};
}

const Merge* MergeTable::find(int32_t left, int32_t right) const {
  const Slot& slot = slots_[slot_of(key_of(left, right))];
  return slot.key == kEmpty ? nullptr : &slot.merge;
}

void Merger::add_candidate(int32_t left) {
  const int32_t right = left < 0 ? -1 : symbols_[left].next;
  if (right < 0) return;
  const Merge* merge = table_->find(symbols_[left].id, symbols_[right].id);
  if (merge == nullptr) return;
  heap_.push_back({(uint64_t{merge->rank} << 32) | static_cast<uint32_t>(left), merge->result,
                   symbols_[left].width + symbols_[right].width});
  std::push_heap(heap_.begin(), heap_.end(), [](const auto& a, const auto& b) { return a.order > b.order; });
}

void Merger::merge(std::span<const int32_t> ids, std::vector<int32_t>& out) {
  const auto n = static_cast<int32_t>(ids.size());
  symbols_.resize(n);
  for (int32_t i = 0; i < n; ++i) symbols_[i] = {ids[i], i - 1, i + 1 < n ? i + 1 : -1, 1};
  heap_.clear();
  for (int32_t i = 0; i + 1 < n; ++i) add_candidate(i);

  while (!heap_.empty()) {
    std::pop_heap(heap_.begin(), heap_.end(), [](const auto& a, const auto& b) { return a.order > b.order; });
    const Candidate best = heap_.back();
    heap_.pop_back();
    const auto left = static_cast<int32_t>(best.order & 0xFFFFFFFFu);
    const int32_t right = symbols_[left].next;
    // Symbols only grow, so the same left index and the same joint width mean the same pair as when it was
    // found.
    if (symbols_[left].width == 0 || right < 0 || symbols_[left].width + symbols_[right].width != best.width)
      continue;
    const int32_t after = symbols_[right].next;
    symbols_[left] = {best.result, symbols_[left].prev, after, best.width};
    symbols_[right].width = 0;
    if (after >= 0) symbols_[after].prev = left;
    add_candidate(symbols_[left].prev);
    add_candidate(left);
  }
  if (n == 0) return;
  for (int32_t i = 0; i >= 0; i = symbols_[i].next) out.push_back(symbols_[i].id);
}

}  // namespace spinfer
