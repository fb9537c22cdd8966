// What the tests of the CPU ops share: a context per test, every SIMD target, seeded data, outputs pre-filled
// with NaN.
#pragma once

#include <gtest/gtest.h>
#include <hwy/targets.h>

#include <random>
#include <string>
#include <vector>

#include "kernels/device.h"
#include "tests/kernels/near.h"

namespace spinfer::test {

inline constexpr Half kNanHalf{0x7e00};

inline std::vector<Half> nan_halves(size_t count) {
  return std::vector<Half>(count, kNanHalf);
}

/// Gaussian fp16 values.
class Random {
 public:
  explicit Random(uint64_t seed) : engine_(seed) {}
  float gaussian(float sigma = 1) { return std::normal_distribution<float>(0, sigma)(engine_); }
  int below(int end) { return std::uniform_int_distribution<int>(0, end - 1)(engine_); }
  std::vector<Half> halves(size_t count, float sigma = 1, float mean = 0) {
    std::vector<Half> values(count);
    for (Half& value : values) value = to_half(mean + gaussian(sigma));
    return values;
  }
  std::mt19937_64& engine() { return engine_; }

 private:
  std::mt19937_64 engine_;
};

/// A CPU device with this many threads.
class CpuDevice : public Device {
 public:
  explicit CpuDevice(int threads = 2) : Device(cpu_backend(), DeviceOptions{.threads = threads}) {}
};

/// The SIMD targets the CPU ops are compiled for and this processor has.
inline std::vector<int64_t> simd_targets() {
  std::vector<int64_t> targets;
  for (const int64_t target : {int64_t{HWY_STATIC_TARGET}, int64_t{HWY_AVX2}, int64_t{HWY_AVX3}})
    if ((hwy::SupportedTargets() & target) != 0) targets.push_back(target);
  return targets;
}

/// A test that runs once on each SIMD target.
class CpuOps : public testing::TestWithParam<int64_t> {
 protected:
  void SetUp() override { hwy::SetSupportedTargetsForTest(GetParam()); }
  void TearDown() override { hwy::SetSupportedTargetsForTest(0); }

  CpuDevice device_;
  const Backend& ops_ = device_.ops();
  DeviceContext& context_ = device_.context();
};

inline std::string target_name(const testing::TestParamInfo<int64_t>& info) {
  return hwy::TargetName(info.param);
}

#define SPINFER_ON_ALL_TARGETS(Suite) \
  INSTANTIATE_TEST_SUITE_P(Simd, Suite, testing::ValuesIn(simd_targets()), target_name)

}  // namespace spinfer::test
