// What the engine's tests share: a tiny random model that needs no files, and runs to the end.
#pragma once

#include <unistd.h>

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <map>
#include <random>
#include <string>
#include <vector>

#include "engine/engine.h"
#include "tests/temporary_directory.h"

namespace spinfer {

constexpr int kTinyVocab = 120;
constexpr int kTinyPositions = 256;

/// Options of a LLaMA of random weights, half of them zero: d 64, 4 heads over 2 KV heads, 2 layers.
class TinyModel {
 public:
  TinyModel() {
    std::ofstream(directory_.path() / "config.json") << R"({
      "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64, "intermediate_size": 192,
      "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
      "hidden_act": "silu", "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "max_position_embeddings": 256,
      "vocab_size": 120, "tie_word_embeddings": false, "bos_token_id": 1, "eos_token_id": 2})";
  }
  EngineOptions options() const {
    EngineOptions options;
    options.model = directory_.path() / "config.json";
    options.random_weights = 0.5;
    options.device = "cpu";
    options.threads = 2;
    options.deterministic = true;
    options.seed = 5;
    options.max_num_seqs = 16;
    return options;
  }

 private:
  test::TemporaryDirectory directory_;
};

struct Answer {
  std::vector<int32_t> ids;
  std::string text;
  std::vector<TokenLogprob> logprobs;
  std::vector<float> prompt_logprobs;
  std::vector<TopLogprob> last_top;
  FinishReason finish = FinishReason::none;
  std::string error;
  int64_t cached_prompt_tokens = 0;
  int updates_after_end = 0;

  void add(RequestUpdate update) {
    updates_after_end += finish != FinishReason::none;
    ids.insert(ids.end(), update.new_ids.begin(), update.new_ids.end());
    text += update.new_text;
    for (auto& logprob : update.logprobs) logprobs.push_back(std::move(logprob));
    if (!update.prompt_logprobs.empty()) prompt_logprobs = std::move(update.prompt_logprobs);
    if (!update.last_top.empty()) last_top = std::move(update.last_top);
    finish = update.finish;
    error = update.error;
    cached_prompt_tokens = update.cached_prompt_tokens;
  }
};

/// Steps until nothing is left, checking the KV cache's books.
inline std::map<RequestId, Answer> run_to_end(Engine& engine) {
  std::map<RequestId, Answer> answers;
  while (engine.has_work()) {
    for (auto& update : engine.step()) answers[update.id].add(std::move(update));
    engine.check_integrity();
  }
  return answers;
}

inline Answer run_one(Engine& engine, const std::vector<int32_t>& prompt, const SamplingParams& params) {
  const RequestId id = engine.add_request(prompt, params);
  return run_to_end(engine).at(id);
}

inline std::vector<int32_t> random_prompt(std::mt19937& random, int length) {
  std::vector<int32_t> prompt;
  for (int i = 0; i < length; ++i) prompt.push_back(int32_t(random() % kTinyVocab));
  return prompt;
}

}  // namespace spinfer
