// Which request owns which block of the paged KV cache. Pure bookkeeping: the keys and values are the
// runner's.
#pragma once

#include <cstdint>
#include <span>
#include <unordered_map>
#include <vector>

#include "engine/request.h"

namespace spinfer {

/// Blocks of the cache by state; free + used + cached = total.
struct KvCacheCounts {
  int64_t total = 0;
  int64_t free = 0;  ///< hold nothing
  int64_t used = 0;  ///< in at least one request's table
  int64_t cached =
      0;  ///< in no table, but their content may be asked for again; given up when blocks are needed
};

/// Block ids [0, num_blocks), each of `block_size` tokens. A request's table lists the blocks of its tokens
/// in order: entry i holds tokens [i·block_size, (i+1)·block_size).
///
/// Prefix caching: a full block whose tokens were computed gets a name (serial number, never reused) and is
/// found again by (name of the block before it, its tokens). The lookup is by hash, the match by comparing
/// both, so a hash collision can cost a hit but never share wrong content. A block is immutable once named,
/// so any number of tables may hold it.
class KvCache {
 public:
  /// Throws `Error` if a number is not positive, or if the slots do not fit 31 bits.
  KvCache(int64_t num_blocks, int block_size, bool prefix_caching);

  int block_size() const { return block_size_; }
  /// Tokens one request alone can have in the cache.
  int64_t capacity_tokens() const { return int64_t(blocks_.size()) * block_size_; }
  /// Blocks that `grow` can hand out now: free and cached ones.
  int64_t available() const { return int64_t(free_.size()) + cached_count_; }
  KvCacheCounts counts() const;

  /// Starts the table of `id` with the longest run of named blocks that holds a prefix of `tokens`. Returns
  /// how many tokens that is, a multiple of block_size; 0 without prefix caching. The table must not exist
  /// yet.
  int64_t open(RequestId id, std::span<const int32_t> tokens);
  /// Makes the table cover `tokens` tokens. False, and nothing changed, if blocks are short.
  bool grow(RequestId id, int64_t tokens);
  /// `computed`, the first tokens of the request, have their keys and values in the cache: names the blocks
  /// they fill.
  void commit(RequestId id, std::span<const int32_t> computed);
  /// Ends the table. Named blocks that nobody else owns stay cached, the last of the table to be evicted
  /// first.
  void close(RequestId id);

  std::span<const int32_t> table(RequestId id) const;

  /// Throws `Error` if the books do not balance: every block in exactly one state, reference counts equal to
  /// the tables, each name findable. O(blocks + table entries).
  void check_integrity() const;

 private:
  using Serial = uint64_t;
  static constexpr Serial kNoName = 0;      // also "parent" of a first block
  static constexpr Serial kBroken = ~0ull;  // the chain of a table whose later blocks cannot be named
  static constexpr int32_t kNone = -1;

  // Each block is in exactly one place:
  //   free    owners == 0, no name, id in free_
  //   used    owners > 0, in `owners` tables; named or not
  //   cached  owners == 0, named, linked in the eviction list
  struct Block {
    int32_t owners = 0;
    Serial name = kNoName;
    Serial parent = kNoName;               // name of the block before; meaningful if named
    uint64_t hash = 0;                     // key in by_hash_; meaningful if named
    int32_t older = kNone, newer = kNone;  // neighbours in the eviction list; meaningful if cached
  };
  struct Table {
    std::vector<int32_t> blocks;
    int64_t committed = 0;   // leading blocks that were offered for naming
    Serial chain = kNoName;  // name of the content of block committed-1
  };

  std::span<int32_t> content(int32_t block) {
    return {&content_[size_t(block) * block_size_], size_t(block_size_)};
  }
  int32_t find(Serial parent, std::span<const int32_t> tokens, uint64_t hash) const;
  int32_t take();
  void acquire(int32_t block);
  void release(int32_t block);
  void link(int32_t block);
  void unlink(int32_t block);

  int block_size_;
  bool prefix_caching_;
  std::vector<Block> blocks_;
  std::vector<int32_t> content_;                   // [num_blocks][block_size] tokens of named blocks
  std::vector<int32_t> free_;                      // taken from the back
  std::unordered_map<uint64_t, int32_t> by_hash_;  // named blocks
  std::unordered_map<RequestId, Table> tables_;
  int32_t oldest_ = kNone, newest_ = kNone;  // ends of the eviction list
  int64_t cached_count_ = 0;
  Serial next_name_ = 1;
};

}  // namespace spinfer
