#include "engine/request_output.h"

#include <algorithm>
#include <utility>

namespace spinfer {

RequestOutput::RequestOutput(RequestId id, std::span<const int32_t> prompt, const SamplingParams& params,
                             const Tokenizer* tokenizer, std::span<const int32_t> eos_ids)
    : params_(params), eos_ids_(eos_ids), stops_(params.stop) {
  update_.id = id;
  if (params.prompt_logprobs) scores_.resize(prompt.size() - 1);
  if (!tokenizer) return;
  text_vocab_ = tokenizer->vocab_size();
  std::vector<int32_t> context;
  std::ranges::copy_if(prompt, std::back_inserter(context), [this](int32_t t) { return t < text_vocab_; });
  decoder_.emplace(*tokenizer, context);
}

void RequestOutput::finish_prompt(std::vector<TopLogprob> last_top) {
  prompt_finished_ = true;
  if (!params_.prompt_logprobs) return;
  update_.prompt_logprobs = std::exchange(scores_, {});
  update_.last_top = std::move(last_top);
  if (params_.max_tokens == 0) end(FinishReason::length);
}

void RequestOutput::add_token(TokenLogprob token) {
  ++update_.sampled_tokens;
  if (is_eos(token.id)) return end(FinishReason::stop);
  ++tokens_;
  update_.new_ids.push_back(token.id);
  if (decoder_ && token.id < text_vocab_) update_.new_text += stops_.push(decoder_->push(token.id));
  if (params_.logprobs >= 0) update_.logprobs.push_back(std::move(token));
  if (stops_.stopped()) {
    end(FinishReason::stop);
  } else if (tokens_ == params_.max_tokens) {
    end(FinishReason::length);
  }
}

void RequestOutput::end(FinishReason reason, std::string error) {
  if (decoder_) {
    update_.new_text += stops_.push(decoder_->finish());
    update_.new_text += stops_.finish();
  }
  update_.finish = stops_.stopped() && reason == FinishReason::length ? FinishReason::stop : reason;
  update_.error = std::move(error);
}

RequestUpdate RequestOutput::take_update() {
  RequestUpdate update = std::exchange(update_, {});
  update_.id = update.id;
  update_.finish = update.finish;
  return update;
}

bool RequestOutput::is_eos(int32_t token) const {
  return !params_.ignore_eos && std::ranges::find(eos_ids_, token) != eos_ids_.end();
}

}  // namespace spinfer
