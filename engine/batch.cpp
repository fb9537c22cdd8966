#include "engine/batch.h"

#include <algorithm>

namespace spinfer {
namespace {

void append_tokens(const ScheduledTokens& work, const KvCache& kv, Batch& batch) {
  const auto table = kv.table(work.seq->id);
  const int block_size = kv.block_size();
  for (int64_t position = work.start; position < work.start + work.count; ++position) {
    batch.token_ids.push_back(work.seq->tokens[position]);
    batch.positions.push_back(int32_t(position));
    batch.slots.push_back(table[position / block_size] * block_size + int32_t(position % block_size));
  }
  batch.query_start.push_back(batch.tokens());
  batch.context_len.push_back(int32_t(work.start + work.count));
  batch.max_query_len = std::max(batch.max_query_len, work.count);
  batch.max_context_len = std::max(batch.max_context_len, batch.context_len.back());
}

void fill_block_tables(const Decision& decision, const KvCache& kv, Batch& batch) {
  batch.max_blocks = (batch.max_context_len + kv.block_size() - 1) / kv.block_size();
  batch.block_table.assign(size_t(batch.sequences()) * batch.max_blocks, 0);
  for (int s = 0; s < batch.sequences(); ++s) {
    const auto table = kv.table(decision.work[s].seq->id);
    const size_t blocks = std::min(table.size(), size_t(batch.max_blocks));
    std::copy_n(table.begin(), blocks, batch.block_table.begin() + ptrdiff_t(s) * batch.max_blocks);
  }
}

void append_sample(const Sequence& seq, int last_row, Batch& batch) {
  const SamplingParams& params = seq.params;
  SampleRow row{.temperature = params.temperature,
                .top_k = params.top_k,
                .top_p = params.top_p,
                .min_p = params.min_p,
                .repeat_penalty = params.repeat_penalty,
                .seen_begin = int32_t(batch.seen.size()),
                .bias_begin = int32_t(batch.biases.size()),
                .step = uint32_t(seq.output_size()),
                .seed = seq.seed};
  if (seq.has_penalty()) {
    const auto seen = seq.seen.tokens();
    batch.seen.insert(batch.seen.end(), seen.begin(), seen.end());
  }
  row.seen_end = int32_t(batch.seen.size());
  batch.biases.insert(batch.biases.end(), params.logit_bias.begin(), params.logit_bias.end());
  row.bias_end = int32_t(batch.biases.size());
  batch.logit_rows.push_back(last_row);
  batch.sample_ids.push_back(seq.id);
  batch.sample_rows.push_back(row);
}

void append_scores(const ScheduledTokens& work, int first_row, Batch& batch) {
  const int64_t end = std::min(work.start + work.count, work.seq->prompt_size - 1);
  for (int64_t position = work.start; position < end; ++position) {
    batch.logit_rows.push_back(int32_t(first_row + (position - work.start)));
    batch.scores.push_back({work.seq->id, position + 1});
    batch.score_targets.push_back(work.seq->tokens[position + 1]);
  }
}

}  // namespace

Batch make_batch(const Decision& decision, const KvCache& kv) {
  Batch batch;
  batch.query_start.push_back(0);
  for (const ScheduledTokens& work : decision.work) append_tokens(work, kv, batch);
  fill_block_tables(decision, kv, batch);

  for (const bool wants_logprobs : {true, false}) {
    for (size_t s = 0; s < decision.work.size(); ++s) {
      const ScheduledTokens& work = decision.work[s];
      if (!work.samples || (work.seq->params.logprobs >= 0) != wants_logprobs) continue;
      append_sample(*work.seq, batch.query_start[s + 1] - 1, batch);
      batch.top = std::max(batch.top, work.seq->params.logprobs);
    }
    if (wants_logprobs) batch.logprob_rows = int(batch.sample_rows.size());
  }
  for (size_t s = 0; s < decision.work.size(); ++s) {
    if (decision.work[s].seq->scoring()) append_scores(decision.work[s], batch.query_start[s], batch);
  }
  return batch;
}

}  // namespace spinfer
