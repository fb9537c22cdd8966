#include "engine/human_bytes.h"

#include <gtest/gtest.h>

namespace spinfer {
namespace {

TEST(HumanBytes, HasTheLargestUnitThatLeavesADigitBeforeThePoint) {
  EXPECT_EQ(human_bytes(0), "0 B");
  EXPECT_EQ(human_bytes(999), "999 B");
  EXPECT_EQ(human_bytes(1000), "1.00 kB");
  EXPECT_EQ(human_bytes(int64_t{80} << 30), "85.90 GB");
  EXPECT_EQ(human_bytes(int64_t{5'000'000'000'000'000}), "5000.00 TB");
}

TEST(HumanBytes, TakesTheUnitOfAnother) {
  EXPECT_EQ(human_bytes(980'000'000, 1'200'000'000), "0.98 GB");
  EXPECT_EQ(human_bytes(1'200'000'000, 980'000'000), "1200.00 MB");
  EXPECT_EQ(human_bytes(0, 1'200'000'000), "0 B");
}

}  // namespace
}  // namespace spinfer
