#include "engine/kv_cache.h"

#define XXH_INLINE_ALL
#include <xxhash.h>

#include <algorithm>
#include <cassert>
#include <limits>

#include "kernels/check.h"

namespace spinfer {
namespace {

uint64_t hash_block(uint64_t parent, std::span<const int32_t> tokens) {
  return XXH64(tokens.data(), tokens.size_bytes(), parent);
}

}  // namespace

KvCache::KvCache(int64_t num_blocks, int block_size, bool prefix_caching)
    : block_size_(block_size), prefix_caching_(prefix_caching) {
  check(block_size >= 1, "--block-size {}: must be at least 1", block_size);
  const int64_t most = std::numeric_limits<int32_t>::max() / block_size;
  check(num_blocks >= 1 && num_blocks <= most,
        "KV cache of {} blocks of {} tokens: 1 to {} blocks are possible", num_blocks, block_size, most);
  blocks_.resize(size_t(num_blocks));
  if (prefix_caching) content_.resize(size_t(num_blocks) * block_size);
  free_.resize(size_t(num_blocks));
  for (int64_t i = 0; i < num_blocks; ++i) free_[i] = int32_t(num_blocks - 1 - i);
}

KvCacheCounts KvCache::counts() const {
  const int64_t total = int64_t(blocks_.size()), free = int64_t(free_.size());
  return {.total = total, .free = free, .used = total - free - cached_count_, .cached = cached_count_};
}

int64_t KvCache::open(RequestId id, std::span<const int32_t> tokens) {
  const auto [entry, fresh] = tables_.try_emplace(id);
  assert(fresh);
  (void)fresh;
  Table& table = entry->second;
  if (!prefix_caching_) return 0;
  for (size_t begin = 0; begin + block_size_ <= tokens.size(); begin += block_size_) {
    const auto wanted = tokens.subspan(begin, block_size_);
    const int32_t block = find(table.chain, wanted, hash_block(table.chain, wanted));
    if (block == kNone) break;
    acquire(block);
    table.blocks.push_back(block);
    table.chain = blocks_[block].name;
  }
  table.committed = int64_t(table.blocks.size());
  return table.committed * block_size_;
}

bool KvCache::grow(RequestId id, int64_t tokens) {
  Table& table = tables_.at(id);
  const int64_t missing = (tokens + block_size_ - 1) / block_size_ - int64_t(table.blocks.size());
  if (missing > available()) return false;
  for (int64_t i = 0; i < missing; ++i) table.blocks.push_back(take());
  return true;
}

void KvCache::commit(RequestId id, std::span<const int32_t> computed) {
  if (!prefix_caching_) return;
  Table& table = tables_.at(id);
  const int64_t full = int64_t(computed.size()) / block_size_;
  assert(full <= int64_t(table.blocks.size()));
  for (; table.committed < full && table.chain != kBroken; ++table.committed) {
    const auto tokens = computed.subspan(size_t(table.committed) * block_size_, block_size_);
    const uint64_t hash = hash_block(table.chain, tokens);
    const int32_t block = table.blocks[table.committed];
    if (const int32_t twin = find(table.chain, tokens, hash); twin != kNone) {
      // Another request computed the same content first: this block stays nameless, the chain goes on through
      // the twin.
      table.chain = blocks_[twin].name;
    } else if (by_hash_.try_emplace(hash, block).second) {
      Block& b = blocks_[block];
      b.name = next_name_++;
      b.parent = table.chain;
      b.hash = hash;
      std::ranges::copy(tokens, content(block).begin());
      table.chain = b.name;
    } else {
      table.chain = kBroken;  // the hash belongs to other content
    }
  }
}

void KvCache::close(RequestId id) {
  const auto entry = tables_.find(id);
  assert(entry != tables_.end());
  // A block is of use only while the one before it is there: evict the end of the table first.
  const auto& blocks = entry->second.blocks;
  for (auto block = blocks.rbegin(); block != blocks.rend(); ++block) release(*block);
  tables_.erase(entry);
}

std::span<const int32_t> KvCache::table(RequestId id) const {
  return tables_.at(id).blocks;
}

int32_t KvCache::find(Serial parent, std::span<const int32_t> tokens, uint64_t hash) const {
  const auto entry = by_hash_.find(hash);
  if (entry == by_hash_.end()) return kNone;
  const int32_t block = entry->second;
  const bool same = blocks_[block].parent == parent &&
                    std::equal(tokens.begin(), tokens.end(), &content_[size_t(block) * block_size_]);
  return same ? block : kNone;
}

int32_t KvCache::take() {
  int32_t block;
  if (!free_.empty()) {
    block = free_.back();
    free_.pop_back();
  } else {
    block = oldest_;
    unlink(block);
    by_hash_.erase(blocks_[block].hash);
    blocks_[block].name = kNoName;
  }
  blocks_[block].owners = 1;
  return block;
}

void KvCache::acquire(int32_t block) {
  if (blocks_[block].owners++ == 0) unlink(block);
}

void KvCache::release(int32_t block) {
  Block& b = blocks_[block];
  assert(b.owners > 0);
  if (--b.owners > 0) return;
  if (b.name != kNoName) {
    link(block);
  } else {
    free_.push_back(block);
  }
}

void KvCache::link(int32_t block) {
  blocks_[block].older = newest_;
  blocks_[block].newer = kNone;
  (newest_ == kNone ? oldest_ : blocks_[newest_].newer) = block;
  newest_ = block;
  ++cached_count_;
}

void KvCache::unlink(int32_t block) {
  const Block& b = blocks_[block];
  (b.older == kNone ? oldest_ : blocks_[b.older].newer) = b.newer;
  (b.newer == kNone ? newest_ : blocks_[b.newer].older) = b.older;
  --cached_count_;
}

void KvCache::check_integrity() const {
  std::vector<int32_t> owners(blocks_.size());
  for (const auto& [id, table] : tables_) {
    for (const int32_t block : table.blocks) {
      check(block >= 0 && size_t(block) < blocks_.size(), "KV cache: request {} lists block {} of {}", id,
            block, blocks_.size());
      ++owners[block];
    }
  }
  enum State : uint8_t { unknown, is_free, is_cached };
  std::vector<State> state(blocks_.size(), unknown);
  for (const int32_t block : free_) {
    check(state[block] == unknown, "KV cache: block {} is twice in the free list", block);
    state[block] = is_free;
  }
  int64_t linked = 0;
  for (int32_t block = oldest_, older = kNone; block != kNone; older = block, block = blocks_[block].newer) {
    check(state[block] == unknown, "KV cache: cached block {} is also free, or linked twice", block);
    check(blocks_[block].older == older, "KV cache: eviction list is broken at block {}", block);
    state[block] = is_cached;
    ++linked;
  }
  check(linked == cached_count_, "KV cache: {} blocks in the eviction list, {} counted", linked,
        cached_count_);
  size_t named = 0;
  for (size_t i = 0; i < blocks_.size(); ++i) {
    const Block& b = blocks_[i];
    check(b.owners == owners[i], "KV cache: block {} has {} owners, {} counted", i, owners[i], b.owners);
    check((b.owners == 0) == (state[i] != unknown), "KV cache: block {} with {} owners is {}", i, b.owners,
          state[i] == unknown ? "in no list" : "free or cached");
    check(state[i] != is_free || b.name == kNoName, "KV cache: free block {} has a name", i);
    check(state[i] != is_cached || b.name != kNoName, "KV cache: cached block {} has no name", i);
    if (b.name == kNoName) continue;
    ++named;
    const auto entry = by_hash_.find(b.hash);
    check(entry != by_hash_.end() && entry->second == int32_t(i), "KV cache: named block {} cannot be found",
          i);
  }
  check(named == by_hash_.size(), "KV cache: {} names for {} named blocks", by_hash_.size(), named);
}

}  // namespace spinfer
