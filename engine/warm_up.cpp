#include "engine/warm_up.h"

#include <algorithm>
#include <set>

#include "engine/decode_shape.h"
#include "kernels/token_bucket.h"

namespace spinfer {
namespace {

/// The largest number of each bucket, up to `most`.
std::vector<int> bucket_sizes(int most) {
  std::vector<int> sizes;
  for (int n = 1; n < most; n = token_bucket(n) + 1) sizes.push_back(std::min(token_bucket(n), most));
  if (sizes.empty() || sizes.back() < most) sizes.push_back(most);
  return sizes;
}

}  // namespace

std::vector<WarmUpStep> warm_up_steps(const StepLimits& limits, int64_t max_model_len, int block_size) {
  std::vector<WarmUpStep> steps;
  std::set<DecodeShape> seen;
  for (const int sequences : bucket_sizes(limits.max_seqs)) {
    // Steps of mixed lengths, for their logits: two tokens each are no decode step.
    if (int64_t{2} * sequences <= limits.max_tokens && max_model_len >= 2) steps.push_back({sequences, 2, 2});
    for (int64_t context = 1; context < 2 * max_model_len; context *= 2) {
      const int64_t tokens = std::min(context, max_model_len);
      const Batch batch = warm_up_batch({sequences, 1, tokens}, block_size);
      if (seen.insert(decode_shape(batch, block_size, limits.max_seqs, limits.max_blocks)).second)
        steps.push_back({sequences, 1, tokens});
    }
  }
  for (const int tokens : bucket_sizes(limits.max_tokens)) {
    const int sequences = int((tokens + max_model_len - 1) / max_model_len);
    const int each = tokens / sequences;
    if (each > 1 && sequences <= limits.max_seqs) steps.push_back({sequences, each, each});
  }
  return steps;
}

Batch warm_up_batch(const WarmUpStep& step, int block_size) {
  Batch batch;
  batch.query_start.push_back(0);
  for (int s = 0; s < step.sequences; ++s) {
    for (int i = 0; i < step.tokens; ++i) {
      batch.token_ids.push_back(0);
      batch.positions.push_back(i);
      batch.slots.push_back(-1);
    }
    batch.query_start.push_back((s + 1) * step.tokens);
    batch.context_len.push_back(step.tokens);
    batch.logit_rows.push_back((s + 1) * step.tokens - 1);
  }
  batch.max_blocks = int((step.context + block_size - 1) / block_size);
  batch.block_table.assign(size_t(step.sequences) * size_t(batch.max_blocks), 0);
  batch.max_query_len = step.tokens;
  batch.max_context_len = int(step.context);
  batch.sample_rows.resize(size_t(step.sequences));
  return batch;
}

}  // namespace spinfer
