// Decode steps come in few shapes, so that the work of each can be recorded once and queued again as a whole:
// a step is padded to the next number of sequences of a ladder and to a power of two of context. Pure
// functions.
#pragma once

#include <compare>

#include "engine/batch.h"

namespace spinfer {

/// What a decode step is padded to.
struct DecodeShape {
  int sequences = 0;
  int blocks = 0;  ///< of a row of the block table
  friend auto operator<=>(const DecodeShape&, const DecodeShape&) = default;
};

/// Whether every sequence of the step has one new token, which samples, and nothing else is asked of it.
bool is_decode(const Batch& batch);

/// The shape of a decode step, within the limits of a runner's arrays (which the step keeps).
/// Sequences: those of token_bucket; the SpMM takes 8, 16, 32, 64 or 96 tokens at a time, so up to 96 padding
/// costs next to nothing. Context: 256, 512, 1024, … tokens: what attention's grid covers.
DecodeShape decode_shape(const Batch& batch, int block_size, int most_sequences, int64_t most_blocks);

/// The step with sequences added up to the shape: token 0 at position 0, not stored, that sees the first
/// token of block 0. Their logits are computed, and not looked at: no sample rows are added.
Batch padded(const Batch& batch, DecodeShape shape, int block_size);

}  // namespace spinfer
