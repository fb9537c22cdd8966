// rope_append: rotary position embedding of q and k in place; k and v go to the paged cache.
#include <algorithm>
#include <cmath>

#include "kernels/cpu/ops.h"

namespace spinfer::cpu {
namespace {

/// Rotates the pairs (x[i], x[i + half]) by angle i.
void rotate(Half* x, const float* cosines, const float* sines, int half) {
  for (int i = 0; i < half; ++i) {
    const float a = to_float(x[i]), b = to_float(x[i + half]);
    x[i] = to_half(a * cosines[i] - b * sines[i]);
    x[i + half] = to_half(b * cosines[i] + a * sines[i]);
  }
}

/// Stores the heads of one token ([kv_heads][head_dim]) at its slot of the cache.
void append(const RopeAppendArgs& a, const Half* heads, int32_t slot, Half* cache) {
  const int64_t block = slot / a.block_size, offset = slot % a.block_size;
  for (int64_t head = 0; head < a.kv_heads; ++head) {
    const int64_t row = (block * a.kv_heads + head) * a.block_size + offset;
    std::copy_n(heads + head * a.head_dim, a.head_dim, cache + row * a.head_dim);
  }
}

}  // namespace

void rope_append(DeviceContext& context, const RopeAppendArgs& a) {
  const int half = a.head_dim / 2;
  const int64_t width = int64_t{a.q_heads + 2 * a.kv_heads} * a.head_dim;
  float* angles = context.scratch.get<float>(size_t(a.n) * a.head_dim);  // [n][cosines, sines]
  for_rows(context, a.n, width, [&](int64_t token) {
    Half* q = a.qkv + token * width;
    Half* k = q + int64_t{a.q_heads} * a.head_dim;
    Half* v = k + int64_t{a.kv_heads} * a.head_dim;
    if (a.inv_freq) {
      float* cosines = angles + token * a.head_dim;
      float* sines = cosines + half;
      for (int i = 0; i < half; ++i) {
        const float angle = float(a.positions[token]) * a.inv_freq[i];
        cosines[i] = std::cos(angle);
        sines[i] = std::sin(angle);
      }
      for (int64_t head = 0; head < a.q_heads + a.kv_heads; ++head)  // q heads, then k heads
        rotate(q + head * a.head_dim, cosines, sines, half);
    }
    if (a.slots[token] < 0) return;
    append(a, k, a.slots[token], a.kv.k);
    append(a, v, a.slots[token], a.kv.v);
  });
}

}  // namespace spinfer::cpu
