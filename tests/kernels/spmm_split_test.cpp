// Who multiplies what in the Hopper SpMM, and who adds up whose sums.
#include "kernels/cuda/spmm_split.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <random>

#include "kernels/cuda/spmm_plan.h"

namespace spinfer::cuda {
namespace {

TEST(FastDivisor, DividesExactly) {
  std::mt19937 random(1);
  for (int i = 0; i < 4000; ++i) {
    const int64_t divisor = i < 3000 ? i + 1 : int64_t(random()) + 1;
    const FastDivisor fast = FastDivisor::of(divisor);
    for (const int64_t near : {int64_t{0}, divisor, int64_t{0xffffffff} / divisor * divisor,
                               int64_t(random()), int64_t{0xffffffff}})
      for (const int64_t dividend : {near - 1, near, near + 1}) {
        if (dividend < 0 || dividend > 0xffffffff) continue;
        ASSERT_EQ(fast.divide(uint32_t(dividend)), dividend / divisor) << dividend << " / " << divisor;
      }
  }
}

/// Plays a launch as spmm_stream.cu and spmm_sums.cuh do it: what is left where, read and stored by whom.
class Launch {
 public:
  Launch(int teams, int chunks, int grid, int items, bool in_pairs)
      : split_(SpmmSplit::of(int64_t(teams) * chunks, chunks, grid)),
        teams_(teams),
        items_(items),
        in_pairs_(in_pairs) {}

  void run() {
    for (int block = 0; block < split_.grid; ++block) run_block(block);
    for (int block = 0; block < split_.grid; ++block) add_up(block);
    EXPECT_EQ(int(stored_.size()), teams_ * items_);
    for (const auto& [what, times] : stored_) EXPECT_EQ(times, 1) << "item " << what;
    EXPECT_EQ(read_.size(), left_.size() * size_t(items_)) << "every partial sum is read";
    for (const auto& [what, times] : read_) EXPECT_EQ(times, 1) << "partial sum " << what;
  }

 private:
  SpmmSplit split_;
  int teams_, items_;
  bool in_pairs_;
  std::map<int, int> left_;           ///< place to team
  std::map<int, int> read_, stored_;  ///< place or team · items + item: how often

  void leave(int place, int team) {
    ASSERT_LT(place, 2 * split_.grid);
    ASSERT_TRUE(left_.emplace(place, team).second) << "place " << place << " is taken";
  }
  void run_block(int block) {
    const int begin = split_.first_unit(block), end = split_.first_unit(block + 1);
    ASSERT_LT(begin, end);
    for (int unit = begin; unit < end; ++unit) ASSERT_EQ(split_.block_of(unit), block);
    const int last_team = split_.team_of(end - 1);
    for (int team = split_.team_of(begin); team < last_team; ++team) {
      if (begin > team * split_.chunks) {
        leave(2 * block, team);
      } else {
        for (int item = 0; item < items_; ++item) ++stored_[team * items_ + item];
      }
    }
    const TeamShare share = TeamShare::of(split_, block, items_, in_pairs_);
    if (share.owners > 1) leave(share.own_place, last_team);
  }
  void add_up(int block) {
    const int team = split_.team_of(split_.first_unit(block + 1) - 1);
    const TeamShare t = TeamShare::of(split_, block, items_, in_pairs_);
    ASSERT_LE(t.entries, 2 * kMostSpmmBlocks);
    for (int entry = 0; t.owners > 1 && entry < t.entries; ++entry) {
      const int turn = t.turn(entry), owner = entry - turn * t.owners;
      ASSERT_EQ(turn, entry / t.owners);
      const int place = t.place(owner);
      ASSERT_EQ(left_.count(place), 1u) << "nobody leaves what block " << block << " waits for";
      ASSERT_EQ(left_[place], team);
      ++read_[place * items_ + t.item(turn)];
    }
    for (int turn = 0; turn < t.turns; ++turn) {
      if (in_pairs_ && turn % 2 == 0) {
        ASSERT_EQ(t.item(turn) % 2, 0);
        ASSERT_EQ(t.item(turn + 1), t.item(turn) + 1);
      }
      ++stored_[team * items_ + t.item(turn)];
    }
  }
};

TEST(SpmmSplit, EverySumIsLeftReadAndStoredOnce) {
  for (const int teams : {1, 2, 3, 16, 20, 54, 113})
    for (const int chunks : {1, 2, 7, 13, 24, 131, 132, 133})
      for (const int sms : {1, 2, 114, 132, kMostSpmmBlocks})
        for (const int items : {2, 4, 8, 16, 24}) {
          SCOPED_TRACE(testing::Message() << teams << " teams of " << chunks << " chunks, " << sms << " SMs, "
                                          << items << " items");
          for (const bool in_pairs : {false, true})
            Launch(teams, chunks, std::min(teams * chunks, sms), items, in_pairs).run();
          if (testing::Test::HasFailure()) return;
        }
}

/// The last blocks start last.
TEST(SpmmSplit, LongerRunsComeFirst) {
  const auto split = SpmmSplit::of(16 * 16, 16, 132);
  for (int block = 0; block < split.grid; ++block)
    EXPECT_EQ(split.first_unit(block + 1) - split.first_unit(block), block < 124 ? 2 : 1) << block;
}

}  // namespace
}  // namespace spinfer::cuda
