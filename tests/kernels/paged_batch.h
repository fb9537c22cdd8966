// What the tests of attention share: sequences, batches of their chunks in a poisoned paged cache, and a
// reference in double precision.
#pragma once

#include <algorithm>
#include <cmath>
#include <numeric>

#include "tests/kernels/cpu_ops.h"

namespace spinfer::test {

struct Heads {
  int q, kv, dim;
  int block_size = 16;
};

/// One sequence: keys, values and all queries of its context, token-major, in no cache yet.
struct Sequence {
  int context;
  std::vector<Half> q;  ///< [context][q heads][dim]
  std::vector<Half> k;  ///< [context][kv heads][dim]
  std::vector<Half> v;  ///< [context][kv heads][dim]
};

inline Sequence random_sequence(Random& random, const Heads& heads, int context) {
  const size_t q_size = size_t(context) * heads.q * heads.dim,
               kv_size = size_t(context) * heads.kv * heads.dim;
  return {context, random.halves(q_size), random.halves(kv_size), random.halves(kv_size)};
}

/// The newest `queries` tokens of a sequence when its cache holds `context` tokens.
struct Chunk {
  const Sequence* sequence;
  int context;
  int queries;
};

/// A batch of chunks with everything `attention` reads. Blocks are handed out in random order; what no token
/// of a context occupies (other blocks, the rest of a last block, block table entries past the end) is NaN or
/// far out of range.
struct PagedBatch {
  PagedBatch(Random& random, const Heads& heads, const std::vector<Chunk>& chunks)
      : heads_(heads), chunks_(chunks) {
    int blocks = 3;
    for (const Chunk& chunk : chunks) {
      const int own = (chunk.context + heads.block_size - 1) / heads.block_size;
      blocks += own;
      max_blocks_ = std::max(max_blocks_, own + 1);
    }
    free_.resize(size_t(blocks));
    std::iota(free_.begin(), free_.end(), 0);
    std::shuffle(free_.begin(), free_.end(), random.engine());
    k_ = v_ = nan_halves(size_t(blocks) * heads.kv * heads.block_size * heads.dim);
    query_start_ = {0};
    for (const Chunk& chunk : chunks) add(chunk);
  }

  /// Halves of the keys, and of the values, of all blocks.
  size_t cache_size() const { return k_.size(); }

  /// [n][q heads · dim]
  std::vector<Half> attend(Device& device, float scale) {
    auto out = nan_halves(size_t(query_start_.back()) * heads_.q * heads_.dim);
    device.ops().attention(device.context(), args(scale, out));
    return out;
  }

  AttentionArgs args(float scale, std::vector<Half>& out) {
    const int max_context = *std::max_element(context_len_.begin(), context_len_.end());
    return {.qkv = qkv_.data(),
            .seqs = {.count = int(chunks_.size()),
                     .query_start = query_start_.data(),
                     .context_len = context_len_.data(),
                     .block_table = table_.data(),
                     .max_blocks = max_blocks_,
                     .max_query_len = max_context,
                     .max_context_len = max_context},
            .kv = {k_.data(), v_.data()},
            .n = query_start_.back(),
            .q_heads = heads_.q,
            .kv_heads = heads_.kv,
            .head_dim = heads_.dim,
            .block_size = heads_.block_size,
            .scale = scale,
            .out = out.data()};
  }

 private:
  void add(const Chunk& chunk) {
    const int own = (chunk.context + heads_.block_size - 1) / heads_.block_size;
    for (int i = 0; i < max_blocks_; ++i) {
      table_.push_back(i < own ? free_.back() : 0x7fffffff);
      if (i < own) free_.pop_back();
    }
    const int32_t* blocks = &table_[table_.size() - size_t(max_blocks_)];
    for (int t = 0; t < chunk.context; ++t) {
      for (int head = 0; head < heads_.kv; ++head) {
        const size_t row = (size_t(blocks[t / heads_.block_size]) * heads_.kv + head) * heads_.block_size +
                           size_t(t % heads_.block_size);
        const size_t source = (size_t(t) * heads_.kv + head) * heads_.dim;
        std::copy_n(&chunk.sequence->k[source], heads_.dim, &k_[row * heads_.dim]);
        std::copy_n(&chunk.sequence->v[source], heads_.dim, &v_[row * heads_.dim]);
      }
    }
    const size_t q_width = size_t(heads_.q) * heads_.dim;
    for (int t = chunk.context - chunk.queries; t < chunk.context; ++t) {
      // A padding row (no context) has some query all the same.
      const auto q = chunk.sequence->q.begin() + std::ptrdiff_t(size_t(std::max(t, 0)) * q_width);
      qkv_.insert(qkv_.end(), q, q + std::ptrdiff_t(q_width));
      qkv_.insert(qkv_.end(), size_t(2 * heads_.kv * heads_.dim), kNanHalf);  // k and v come from the cache
    }
    query_start_.push_back(query_start_.back() + chunk.queries);
    context_len_.push_back(chunk.context);
  }

  Heads heads_;
  std::vector<Chunk> chunks_;
  int max_blocks_ = 0;
  std::vector<int32_t> free_, query_start_, context_len_, table_;
  std::vector<Half> qkv_, k_, v_;
};

/// A batch's newest tokens before rope_append: k and v in qkv, nothing (NaN) in their slots of the cache.
struct NewestTokens {
  NewestTokens(Random& random, const AttentionArgs& a, size_t cache_size)
      : qkv(a.qkv, a.qkv + size_t(a.n) * size_t((a.q_heads + 2 * a.kv_heads) * a.head_dim)),
        k(a.kv.k, a.kv.k + cache_size),
        v(a.kv.v, a.kv.v + cache_size) {
    for (Half& x : qkv)
      if (x == kNanHalf) x = to_half(random.gaussian());
    for (int s = 0; s < a.seqs.count; ++s) {
      const int begin = a.seqs.query_start[s], end = a.seqs.query_start[s + 1];
      for (int token = begin; token < end; ++token) {
        const int position = a.seqs.context_len[s] - (end - token);
        const int block = a.seqs.block_table[s * a.seqs.max_blocks + position / a.block_size];
        positions.push_back(position);
        slots.push_back(block * a.block_size + position % a.block_size);
        for (int head = 0; head < a.kv_heads; ++head) {
          const size_t row = (size_t(block) * size_t(a.kv_heads) + size_t(head)) * size_t(a.block_size) +
                             size_t(position % a.block_size);
          std::fill_n(&k[row * size_t(a.head_dim)], a.head_dim, kNanHalf);
          std::fill_n(&v[row * size_t(a.head_dim)], a.head_dim, kNanHalf);
        }
      }
    }
    for (int i = 0; i < a.head_dim / 2; ++i)
      inv_freq.push_back(std::pow(10000.0f, -2.0f * float(i) / float(a.head_dim)));
  }

  std::vector<Half> qkv, k, v;
  std::vector<int32_t> positions, slots;
  std::vector<float> inv_freq;
};

/// [queries][q heads · dim] and the error bound of an fp32 evaluation.
struct Reference {
  std::vector<double> out;
  double error = 0;
};

inline Reference reference(const Heads& heads, const Chunk& chunk, double scale) {
  const Sequence& s = *chunk.sequence;
  Reference result;
  double largest_sum = 0, largest_value = 0;
  for (int t = chunk.context - chunk.queries; t < chunk.context; ++t) {
    for (int head = 0; head < heads.q; ++head) {
      const int kv_head = head / (heads.q / heads.kv);
      std::vector<double> p(size_t(t) + 1);
      for (int j = 0; j <= t; ++j) {
        double magnitude = 0;
        for (int i = 0; i < heads.dim; ++i) {
          const double product = to_double(s.q[(size_t(t) * heads.q + head) * heads.dim + i]) *
                                 to_double(s.k[(size_t(j) * heads.kv + kv_head) * heads.dim + i]) * scale;
          p[j] += product;
          magnitude += std::abs(product);
        }
        largest_sum = std::max(largest_sum, magnitude);
      }
      const double max = *std::max_element(p.begin(), p.end());
      double sum = 0;
      for (double& x : p) sum += x = std::exp(x - max);
      for (int i = 0; i < heads.dim; ++i) {
        double out = 0;
        for (int j = 0; j <= t; ++j) {
          const double value = to_double(s.v[(size_t(j) * heads.kv + kv_head) * heads.dim + i]);
          out += p[j] / sum * value;
          largest_value = std::max(largest_value, std::abs(value));
        }
        result.out.push_back(out);
      }
    }
  }
  // A score is off by at most (dim + 2)·u·Σ|q·k|, which moves weights relatively by as much; sums over the
  // context add (context + block steps)·u. Both in numerator and denominator.
  const double u = 0x1p-24;
  result.error = 2 * largest_value * u * ((heads.dim + 2) * largest_sum + 2.0 * chunk.context + 8);
  return result;
}

}  // namespace spinfer::test
