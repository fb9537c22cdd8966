#include "engine/decode_shape.h"

#include <algorithm>
#include <bit>

#include "kernels/token_bucket.h"

namespace spinfer {
namespace {

constexpr int kContextUnit = 256;

}  // namespace

bool is_decode(const Batch& batch) {
  return batch.sequences() > 0 && batch.max_query_len == 1 && batch.scores.empty() &&
         int(batch.sample_rows.size()) == batch.sequences();
}

DecodeShape decode_shape(const Batch& batch, int block_size, int most_sequences, int64_t most_blocks) {
  const int units = (batch.max_context_len + kContextUnit - 1) / kContextUnit;
  const int64_t tokens = int64_t{kContextUnit} * std::bit_ceil(unsigned(units));
  const int64_t blocks = std::min((tokens + block_size - 1) / block_size, most_blocks);
  return {std::min(token_bucket(batch.sequences()), most_sequences),
          int(std::max<int64_t>(blocks, batch.max_blocks))};
}

Batch padded(const Batch& batch, DecodeShape shape, int block_size) {
  Batch out = batch;
  const auto count = size_t(shape.sequences);
  out.token_ids.resize(count, 0);
  out.positions.resize(count, 0);
  out.slots.resize(count, -1);
  out.context_len.resize(count, 1);
  for (int row = batch.sequences(); row < shape.sequences; ++row) {
    out.query_start.push_back(row + 1);
    out.logit_rows.push_back(row);
  }
  out.block_table.assign(count * size_t(shape.blocks), 0);
  for (int row = 0; row < batch.sequences(); ++row) {
    std::copy_n(batch.block_table.begin() + ptrdiff_t(row) * batch.max_blocks, batch.max_blocks,
                out.block_table.begin() + ptrdiff_t(row) * shape.blocks);
  }
  out.max_blocks = shape.blocks;
  out.max_context_len = shape.blocks * block_size;
  return out;
}

}  // namespace spinfer
