#include "engine/request.h"

#include <gtest/gtest.h>

#include <cmath>
#include <functional>

#include "kernels/check.h"

namespace spinfer {
namespace {

TEST(SamplingParams, DefaultsAndLimitsAreLegal) {
  SamplingParams params;
  EXPECT_NO_THROW(check_sampling_params(params));
  params = {.max_tokens = 0,
            .temperature = 100,
            .top_k = 0,
            .top_p = 1,
            .min_p = 1,
            .logit_bias = {{0, -100}, {7, 100}},
            .logprobs = kMaxLogprobs,
            .prompt_logprobs = true};
  EXPECT_NO_THROW(check_sampling_params(params));
}

TEST(SamplingParams, EachRangeIsCheckedAndNamed) {
  struct Case {
    const char* field;
    std::function<void(SamplingParams&)> spoil;
  };
  const std::vector<Case> cases = {
      {"max_tokens", [](auto& p) { p.max_tokens = 0; }},
      {"max_tokens",
       [](auto& p) {
         p.max_tokens = -1;
         p.prompt_logprobs = true;
       }},
      {"temperature", [](auto& p) { p.temperature = -0.1f; }},
      {"temperature", [](auto& p) { p.temperature = 100.5f; }},
      {"temperature", [](auto& p) { p.temperature = NAN; }},
      {"top_k", [](auto& p) { p.top_k = -1; }},
      {"top_p", [](auto& p) { p.top_p = 0; }},
      {"top_p", [](auto& p) { p.top_p = 1.01f; }},
      {"top_p", [](auto& p) { p.top_p = NAN; }},
      {"min_p", [](auto& p) { p.min_p = -1; }},
      {"min_p", [](auto& p) { p.min_p = NAN; }},
      {"repeat_penalty", [](auto& p) { p.repeat_penalty = 0; }},
      {"repeat_penalty", [](auto& p) { p.repeat_penalty = INFINITY; }},
      {"logit_bias",
       [](auto& p) {
         p.logit_bias = {{-1, 1}};
       }},
      {"logit_bias",
       [](auto& p) {
         p.logit_bias = {{5, 1}, {5, 2}};
       }},
      {"logit_bias",
       [](auto& p) {
         p.logit_bias = {{5, 100.5f}};
       }},
      {"logit_bias",
       [](auto& p) {
         p.logit_bias = {{5, NAN}};
       }},
      {"logit_bias",
       [](auto& p) {
         for (int id = 0; id <= kMaxLogitBiases; ++id) p.logit_bias.push_back({id, 1});
       }},
      {"logprobs", [](auto& p) { p.logprobs = kMaxLogprobs + 1; }},
      {"logprobs", [](auto& p) { p.logprobs = -2; }},
      {"stop string",
       [](auto& p) {
         p.stop = {"ok", ""};
       }},
      {"stop string", [](auto& p) { p.stop = {"\x80"}; }},
      {"stop string", [](auto& p) { p.stop = {std::string(kMaxStopBytes + 1, 'x')}; }},
      {"stop strings", [](auto& p) { p.stop.assign(kMaxStopStrings + 1, "x"); }},
  };
  for (const Case& c : cases) {
    SamplingParams params;
    c.spoil(params);
    try {
      check_sampling_params(params);
      ADD_FAILURE() << c.field << " was not refused";
    } catch (const Error& e) {
      EXPECT_NE(std::string(e.what()).find(c.field), std::string::npos) << e.what();
    }
  }
}

TEST(FinishReason, HasTheNamesOfTheContract) {
  EXPECT_STREQ(to_string(FinishReason::stop), "stop");
  EXPECT_STREQ(to_string(FinishReason::length), "length");
  EXPECT_STREQ(to_string(FinishReason::cancelled), "cancelled");
  EXPECT_STREQ(to_string(FinishReason::error), "error");
}

}  // namespace
}  // namespace spinfer
