// A scheduler's decision as the flat index arrays that one forward pass and the sampler read. A pure
// function.
#pragma once

#include <cstdint>
#include <vector>

#include "engine/kv_cache.h"
#include "engine/scheduler.h"
#include "kernels/ops.h"

namespace spinfer {

/// Token rows are grouped by sequence in the order of `Decision::work`; n tokens of `count` sequences.
/// Logits are wanted of `logit_rows`: first one row for each sequence that samples (those that want
/// log-probabilities first), then the rows of prompts whose own tokens are scored.
struct Batch {
  std::vector<int32_t> token_ids;    ///< [n]
  std::vector<int32_t> positions;    ///< [n]
  std::vector<int32_t> slots;        ///< [n] block · block_size + offset
  std::vector<int32_t> query_start;  ///< [count + 1]
  std::vector<int32_t> context_len;  ///< [count]
  std::vector<int32_t> block_table;  ///< [count][max_blocks], unused entries 0
  int max_blocks = 0;
  int max_query_len = 0;
  int max_context_len = 0;

  std::vector<int32_t> logit_rows;     ///< [samples + scores] token rows
  std::vector<RequestId> sample_ids;   ///< [samples] whose next token row i gives
  std::vector<SampleRow> sample_rows;  ///< [samples]
  std::vector<int32_t> seen;           ///< see SampleRow
  std::vector<TokenBias> biases;       ///< see SampleRow
  int logprob_rows = 0;                ///< the first sample rows whose log-probabilities are wanted
  int top = 0;                         ///< most alternatives any of them wants

  struct Score {
    RequestId id;
    int64_t position;  ///< of the token whose log-probability given those before is wanted
  };
  std::vector<Score> scores;           ///< [scores]
  std::vector<int32_t> score_targets;  ///< [scores] the tokens at those positions

  int tokens() const { return int(token_ids.size()); }
  int sequences() const { return int(context_len.size()); }
};

Batch make_batch(const Decision& decision, const KvCache& kv);

}  // namespace spinfer
