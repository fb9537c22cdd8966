#include "engine/kv_cache.h"

#include <gtest/gtest.h>

#include <numeric>
#include <random>
#include <set>

#include "kernels/check.h"

namespace spinfer {
namespace {

std::vector<int32_t> tokens_from(int32_t first, int count) {
  std::vector<int32_t> tokens(count);
  std::iota(tokens.begin(), tokens.end(), first);
  return tokens;
}

std::vector<int32_t> table_of(const KvCache& kv, RequestId id) {
  const auto table = kv.table(id);
  return {table.begin(), table.end()};
}

/// Computes `tokens` for a new request as the engine would; returns how many came from the cache.
int64_t compute(KvCache& kv, RequestId id, const std::vector<int32_t>& tokens) {
  const int64_t found = kv.open(id, tokens);
  EXPECT_TRUE(kv.grow(id, int64_t(tokens.size())));
  kv.commit(id, tokens);
  kv.check_integrity();
  return found;
}

TEST(KvCache, RejectsImpossibleSizes) {
  EXPECT_THROW(KvCache(0, 16, true), Error);
  EXPECT_THROW(KvCache(8, 0, true), Error);
  EXPECT_THROW(KvCache(int64_t{1} << 31, 16, true), Error);
}

TEST(KvCache, GrowsByWholeBlocksAndIsAllOrNothing) {
  KvCache kv(4, 16, true);
  EXPECT_EQ(kv.capacity_tokens(), 64);
  kv.open(1, {});
  EXPECT_TRUE(kv.grow(1, 1));
  EXPECT_TRUE(kv.grow(1, 16));
  EXPECT_EQ(kv.table(1).size(), 1u);
  EXPECT_TRUE(kv.grow(1, 17));
  EXPECT_EQ(kv.table(1).size(), 2u);
  kv.open(2, {});
  EXPECT_FALSE(kv.grow(2, 33));
  EXPECT_EQ(kv.table(2).size(), 0u);
  EXPECT_TRUE(kv.grow(2, 32));
  EXPECT_EQ(kv.available(), 0);
  kv.check_integrity();
  kv.close(1);
  kv.close(2);
  kv.check_integrity();
  const KvCacheCounts counts = kv.counts();
  EXPECT_EQ(counts.free, 4);
  EXPECT_EQ(counts.used + counts.cached, 0);
}

TEST(KvCache, BlocksOfTwoRequestsAreDistinct) {
  KvCache kv(6, 4, false);
  kv.open(1, {});
  kv.open(2, {});
  ASSERT_TRUE(kv.grow(1, 12));
  ASSERT_TRUE(kv.grow(2, 12));
  std::set<int32_t> all;
  for (RequestId id : {1, 2}) {
    for (int32_t block : kv.table(id)) all.insert(block);
  }
  EXPECT_EQ(all.size(), 6u);
  EXPECT_EQ(*all.begin(), 0);
  EXPECT_EQ(*all.rbegin(), 5);
}

TEST(KvCache, SharesFullBlocksWithTheSamePrefixOnly) {
  KvCache kv(16, 4, true);
  const auto a = tokens_from(0, 10);  // two full blocks and a half
  EXPECT_EQ(compute(kv, 1, a), 0);
  EXPECT_EQ(compute(kv, 2, a), 8);
  EXPECT_EQ(kv.table(1)[0], kv.table(2)[0]);
  EXPECT_EQ(kv.table(1)[1], kv.table(2)[1]);
  EXPECT_NE(kv.table(1)[2], kv.table(2)[2]);

  auto changed_start = a;
  changed_start[0] = 99;  // the second block has the same tokens after another prefix: must not be shared
  EXPECT_EQ(compute(kv, 3, changed_start), 0);
  EXPECT_NE(kv.table(3)[1], kv.table(1)[1]);
  auto changed_end = a;
  changed_end[7] = 99;
  EXPECT_EQ(compute(kv, 4, changed_end), 4);

  const KvCacheCounts counts = kv.counts();
  EXPECT_EQ(counts.used, 3 + 1 + 3 + 2);
}

TEST(KvCache, FindsBlocksOfEndedRequestsUntilTheyAreEvicted) {
  KvCache kv(4, 4, true);
  compute(kv, 1, tokens_from(0, 8));
  const auto blocks = table_of(kv, 1);
  kv.close(1);
  EXPECT_EQ(kv.counts().cached, 2);
  EXPECT_EQ(kv.available(), 4);

  EXPECT_EQ(kv.open(2, tokens_from(0, 8)), 8);
  EXPECT_EQ(table_of(kv, 2), blocks);
  EXPECT_EQ(kv.counts().cached, 0);
  kv.close(2);
  kv.check_integrity();

  compute(kv, 3,
          tokens_from(100, 12));  // two free blocks, one evicted: the end of the old prefix, not its start
  EXPECT_EQ(kv.open(4, tokens_from(0, 8)), 4);
  kv.check_integrity();
}

TEST(KvCache, EvictsTheLeastRecentlyUsedFirst) {
  KvCache kv(3, 2, true);
  for (RequestId id = 1; id <= 3; ++id) compute(kv, id, tokens_from(int32_t(10 * id), 2));
  for (RequestId id = 1; id <= 3; ++id) kv.close(id);
  EXPECT_EQ(kv.open(4, tokens_from(10, 2)), 2);  // touches the oldest
  kv.close(4);
  compute(kv, 5, tokens_from(70, 2));
  kv.close(5);
  EXPECT_EQ(kv.open(6, tokens_from(10, 2)), 2);
  EXPECT_EQ(kv.open(7, tokens_from(20, 2)), 0);  // was the oldest
  EXPECT_EQ(kv.open(8, tokens_from(30, 2)), 2);
  kv.check_integrity();
}

TEST(KvCache, TwinsComputedAtOnceKeepTheChain) {
  KvCache kv(8, 2, true);
  const auto tokens = tokens_from(0, 6);
  for (RequestId id : {1, 2}) {
    EXPECT_EQ(kv.open(id, tokens), 0);
    ASSERT_TRUE(kv.grow(id, 6));
  }
  kv.commit(1, std::span(tokens).first(2));
  kv.commit(
      2, std::span(tokens).first(4));  // its first block stays nameless, its second follows the twin's name
  kv.check_integrity();
  EXPECT_EQ(kv.open(3, tokens), 4);
  EXPECT_EQ(kv.table(3)[0], kv.table(1)[0]);
  EXPECT_EQ(kv.table(3)[1], kv.table(2)[1]);
  for (RequestId id : {1, 2, 3}) kv.close(id);
  kv.check_integrity();
  EXPECT_EQ(kv.counts().cached, 2);
}

TEST(KvCache, WithoutPrefixCachingNothingIsKept) {
  KvCache kv(4, 2, false);
  compute(kv, 1, tokens_from(0, 4));
  EXPECT_EQ(kv.open(2, tokens_from(0, 4)), 0);
  kv.close(1);
  EXPECT_EQ(kv.counts().free, 4);
}

TEST(KvCache, RandomUseKeepsTheBooks) {
  std::mt19937 random(7);
  KvCache kv(24, 3, true);
  struct Live {
    RequestId id;
    std::vector<int32_t> tokens;
  };
  std::vector<Live> live;
  RequestId next = 1;
  int64_t hits = 0;
  for (int step = 0; step < 20000; ++step) {
    if (live.size() < 6 && random() % 2) {
      Live request{next++, {}};
      const int length = 1 + int(random() % 20);
      for (int i = 0; i < length; ++i)
        request.tokens.push_back(i < 9 ? int32_t(random() % 64 == 0) : int32_t(random() % 2));
      hits += kv.open(request.id, request.tokens);
      if (kv.grow(request.id, length)) {
        kv.commit(request.id, std::span(request.tokens).first(random() % (request.tokens.size() + 1)));
        live.push_back(std::move(request));
      } else {
        kv.close(request.id);
      }
    } else if (!live.empty()) {
      const size_t i = random() % live.size();
      if (random() % 3 == 0) {
        kv.close(live[i].id);
        live.erase(live.begin() + ptrdiff_t(i));
      } else if (kv.grow(live[i].id, int64_t(live[i].tokens.size()) + 1)) {
        live[i].tokens.push_back(int32_t(random() % 2));
        kv.commit(live[i].id, live[i].tokens);
      }
    }
    if (step % 8 == 0) {
      ASSERT_NO_THROW(kv.check_integrity()) << "step " << step;
    }
  }
  EXPECT_GT(hits, 1000);
  for (const Live& request : live) kv.close(request.id);
  kv.check_integrity();
  EXPECT_EQ(kv.available(), 24);
}

}  // namespace
}  // namespace spinfer
