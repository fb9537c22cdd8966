// What the tests of whole engines on GPUs share: the demo models, their options and prompts.
#pragma once

#include <gtest/gtest.h>

#include <random>
#include <vector>

#include "kernels/backend.h"
#include "tests/engine/engine_fixture.h"
#include "tests/test_paths.h"

namespace spinfer {

inline constexpr double kNearTie = 0.02;  ///< nat; tokens closer than this may swap
inline constexpr int kVocab = 500;        ///< ids both demo models know

/// Its parameter is a model's folder in tests/data. Skips where that or a GPU is missing.
class DemoModelOnGpus : public testing::TestWithParam<const char*> {
 protected:
  explicit DemoModelOnGpus(int gpus) : gpus_(gpus) {}
  void SetUp() override {
    const Backend* cuda = cuda_backend();
    const int there = cuda ? cuda->device_count() : 0;
    if (there < gpus_) GTEST_SKIP() << "needs CUDA devices: " << gpus_ << ", has " << there;
    model_ = test::source_directory() / "tests/data" / GetParam();
    if (!std::filesystem::exists(model_)) GTEST_SKIP() << "no model at " << model_;
  }

  EngineOptions model_options(const char* device, bool deterministic) const {
    EngineOptions options;
    options.model = model_;
    options.device = device;
    options.deterministic = deterministic;
    options.min_sparsity = 0.1;
    options.max_num_seqs = 8;
    options.prefix_caching = false;  // so that a repeated prompt is computed alike
    options.kv_cache_bytes = int64_t{64} << 20;
    return options;
  }

 private:
  int gpus_;
  std::filesystem::path model_;
};

/// Prompts of odd lengths, one longer than a decode split and a prefill tile.
inline std::vector<std::vector<int32_t>> prompts() {
  std::mt19937 random(7);
  std::vector<std::vector<int32_t>> all;
  for (const int length : {1, 2, 17, 45, 140}) {
    std::vector<int32_t> prompt;
    for (int i = 0; i < length; ++i) prompt.push_back(int32_t(5 + random() % (kVocab - 5)));
    all.push_back(prompt);
  }
  return all;
}

}  // namespace spinfer
