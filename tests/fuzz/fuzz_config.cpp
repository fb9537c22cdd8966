// config.json: whatever the text, parse_config accepts it or throws one line, and what it accepted can be
// used.
#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "kernels/check.h"
#include "models/checkpoint_tools.h"
#include "models/weight_table.h"

using namespace spinfer;

namespace {

void require(bool ok) {
  if (!ok) std::abort();
}

void use(const ModelConfig& config) {
  require(config.rope_inv_freq().size() == (config.rope_theta > 0 ? size_t(config.head_dim / 2) : 0));
  for (const int world : {1, 2, 8}) {
    try {
      check_tensor_parallel(config, world);
    } catch (const UsageError&) {
      continue;
    }
    int64_t ffn = 0;
    for (int rank = 0; rank < world; ++rank) {
      const ShardSizes mine(config, {rank, world});
      require(mine.q_size > 0 && mine.kv_size > 0 && mine.ffn > 0 && mine.vocab.size() > 0);
      ffn += mine.ffn;
      require(Workspace::bytes(config, {rank, world}, 1 << 20, 1 << 16) > 0);
    }
    require(ffn == config.ffn_size);
  }
  if (config.layers <= 4) {
    const WeightPlan plan = plan_weights(config, 0.5, {});
    require(plan.parameters > 0 && plan.dense_bytes == 2 * plan.parameters && plan.packed_bytes > 0);
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  ModelConfig config;
  try {
    config = parse_config({reinterpret_cast<const char*>(data), size}, "config.json");
  } catch (const Error& e) {
    const std::string_view message = e.what();
    require(message.starts_with("config.json: ") && message.find('\n') == std::string_view::npos);
    return 0;
  }
  use(config);
  return 0;
}
