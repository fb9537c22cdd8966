#include "engine/apps/self_test.h"

#include <cmath>
#include <cstdint>
#include <memory>
#include <random>

#include "kernels/thread_pool.h"

namespace spinfer {
namespace {

/// Rounding a result to fp16 costs 2^-11 at most, relative to it.
constexpr double kTolerance = 1e-3;

std::vector<Half> gaussian_halves(size_t count, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::normal_distribution<float> gaussian;
  std::vector<Half> values(count);
  for (Half& value : values) value = to_half(gaussian(random));
  return values;
}

DeviceArray<Half> on_device(Device& device, const std::vector<Half>& values) {
  DeviceArray<Half> array(device, int64_t(values.size()), MemoryUse::workspace);
  array.upload(values.data(), array.size());
  return array;
}

/// ‖got − want‖ / ‖want‖.
double relative_error(const std::vector<Half>& got, const std::vector<double>& want) {
  double difference = 0, norm = 0;
  for (size_t i = 0; i < want.size(); ++i) {
    difference += std::pow(double(to_float(got[i])) - want[i], 2);
    norm += want[i] * want[i];
  }
  return std::sqrt(difference / norm);
}

/// y = W·x with a half-empty W of odd sizes, against double arithmetic on the host.
SelfTest test_linear(Device& device, bool packed) {
  constexpr int64_t kM = 203, kK = 331;
  constexpr int kN = 5;
  std::mt19937_64 random(7);
  std::normal_distribution<float> gaussian;
  auto weights = std::make_shared<std::vector<Half>>(size_t(kM * kK));
  for (Half& w : *weights) w = random() % 2 ? to_half(gaussian(random)) : Half{};
  std::vector<Half> x(size_t(kN * kK));
  for (Half& value : x) value = to_half(gaussian(random));
  std::vector<double> want(size_t(kN * kM));
  for (int n = 0; n < kN; ++n) {
    for (int64_t m = 0; m < kM; ++m) {
      for (int64_t k = 0; k < kK; ++k) {
        want[size_t(n * kM + m)] +=
            double(to_float((*weights)[size_t(m * kK + k)])) * double(to_float(x[size_t(n * kK + k)]));
      }
    }
  }

  ThreadPool pool(1);
  const DenseMatrix dense{kM, kK, weights->data(), weights};
  const HostMatrix matrix = packed ? HostMatrix(encode(dense, pool)) : HostMatrix(dense);
  const LinearWeight weight = device.ops().prepare_linear(device.context(), matrix, nullptr, false);
  DeviceArray<Half> device_x(device, int64_t(x.size()), MemoryUse::workspace);
  DeviceArray<Half> device_y(device, int64_t(want.size()), MemoryUse::workspace);
  device_x.upload(x.data(), device_x.size());
  device.ops().linear(device.context(),
                      {.w = weight.view, .x = device_x.data(), .n = kN, .y = device_y.data()});
  return {packed ? "linear, TCA-BME" : "linear, dense",
          relative_error(device_y.download(device_y.size()), want)};
}

/// Two sequences over a paged cache with grouped heads: one decodes its 37th token, the other takes the last
/// 5 of 21.
struct AttentionCase {
  static constexpr int kQHeads = 4, kKvHeads = 2, kDim = 64, kBlock = 16, kMaxBlocks = 3, kTokens = 6;
  static constexpr int kRow = (kQHeads + 2 * kKvHeads) * kDim;
  const std::vector<int32_t> query_start{0, 1, 6}, context_len{37, 21}, block_table{4, 0, 2, 3, 1, 0};
  const std::vector<Half> qkv = gaussian_halves(size_t{kTokens} * kRow, 11);
  const std::vector<Half> k = gaussian_halves(size_t{5} * kKvHeads * kBlock * kDim, 12);
  const std::vector<Half> v = gaussian_halves(size_t{5} * kKvHeads * kBlock * kDim, 13);
  const float scale = 0.125f;

  /// Where key and value of a sequence's token begin.
  size_t slot(int sequence, int head, int position) const {
    const int block = block_table[size_t(sequence * kMaxBlocks + position / kBlock)];
    return size_t(((block * kKvHeads + head) * kBlock + position % kBlock) * kDim);
  }
  std::vector<double> reference() const;
};

std::vector<double> AttentionCase::reference() const {
  std::vector<double> out(size_t{kTokens} * kQHeads * kDim);
  for (int s = 0; s < 2; ++s) {
    const int first = query_start[size_t(s)], count = query_start[size_t(s) + 1] - first;
    for (int i = 0; i < count * kQHeads; ++i) {
      const int token = first + i / kQHeads, head = i % kQHeads, kv_head = head / (kQHeads / kKvHeads);
      const int visible = context_len[size_t(s)] - count + i / kQHeads + 1;
      const Half* q = qkv.data() + token * kRow + head * kDim;
      double* result = out.data() + (token * kQHeads + head) * kDim;
      double sum = 0;
      for (int position = 0; position < visible; ++position) {
        const size_t at = slot(s, kv_head, position);
        double score = 0;
        for (size_t d = 0; d < kDim; ++d) score += double(to_float(q[d])) * double(to_float(k[at + d]));
        const double weight = std::exp(score * double(scale));
        sum += weight;
        for (size_t d = 0; d < kDim; ++d) result[d] += weight * double(to_float(v[at + d]));
      }
      for (size_t d = 0; d < kDim; ++d) result[d] /= sum;
    }
  }
  return out;
}

SelfTest test_attention(Device& device) {
  const AttentionCase c;
  std::vector<int32_t> indices(c.query_start);
  indices.insert(indices.end(), c.context_len.begin(), c.context_len.end());
  indices.insert(indices.end(), c.block_table.begin(), c.block_table.end());
  DeviceArray<int32_t> index(device, int64_t(indices.size()), MemoryUse::workspace);
  index.upload(indices.data(), index.size());
  const DeviceArray<Half> qkv = on_device(device, c.qkv), k = on_device(device, c.k),
                          v = on_device(device, c.v);
  const std::vector<double> want = c.reference();
  const DeviceArray<Half> out(device, int64_t(want.size()), MemoryUse::workspace);
  const SequenceBatch sequences{.count = 2,
                                .query_start = index.data(),
                                .context_len = index.data() + 3,
                                .block_table = index.data() + 5,
                                .max_blocks = c.kMaxBlocks,
                                .max_query_len = 5,
                                .max_context_len = 37};
  device.ops().attention(device.context(), {.qkv = qkv.data(),
                                            .seqs = sequences,
                                            .kv = {k.data(), v.data()},
                                            .n = c.kTokens,
                                            .q_heads = c.kQHeads,
                                            .kv_heads = c.kKvHeads,
                                            .head_dim = c.kDim,
                                            .block_size = c.kBlock,
                                            .scale = c.scale,
                                            .out = out.data()});
  return {"attention", relative_error(out.download(out.size()), want)};
}

}  // namespace

bool SelfTest::ok() const {
  return rel_error < kTolerance;  // NaN is not
}

std::vector<SelfTest> self_test(Device& device) {
  return {test_linear(device, false), test_linear(device, true), test_attention(device)};
}

}  // namespace spinfer
