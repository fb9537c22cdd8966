// Wanda and SparseGPT against NumPy (scripts/make_pruning_goldens.py), and whole runs: layer by layer,
// interrupted, on layers that have something wrong with them.
#include <gtest/gtest.h>

#include <cmath>
#include <numeric>

#include "kernels/check.h"
#include "models/build_model.h"
#include "models/checkpoint.h"
#include "models/checkpoint_tools.h"
#include "models/pruning/magnitude.h"
#include "models/pruning/owl.h"
#include "models/pruning/wanda.h"
#include "tests/models/model_runner.h"
#include "tests/models/tiny_checkpoint.h"
#include "tests/temporary_directory.h"
#include "tests/test_paths.h"

namespace spinfer::test {
namespace {

namespace fs = std::filesystem;

const char* const kTinyOpt350m =
    R"({"architectures": ["OPTForCausalLM"], "model_type": "opt", "vocab_size": 40, "hidden_size": 16,
  "word_embed_proj_dim": 8, "do_layer_norm_before": false, "num_hidden_layers": 2, "num_attention_heads": 2,
  "ffn_dim": 24, "max_position_embeddings": 64, "bos_token_id": 2, "eos_token_id": 2})";

// ---- goldens

struct Golden {
  SafetensorsFile file{test::source_directory() / "tests/data/pruning_goldens.safetensors"};

  template <class T>
  std::vector<T> values(const std::string& name) const {
    const auto bytes = file.bytes(*file.find(name));
    std::vector<T> values(bytes.size() / sizeof(T));
    std::memcpy(values.data(), bytes.data(), bytes.size());
    return values;
  }
};

struct Case {
  std::vector<Half> x, w;
  int64_t m, k;
  int n;
  Case(const Golden& golden, const std::string& name)
      : x(golden.values<Half>(name + ".x")),
        w(golden.values<Half>(name + ".w")),
        m(golden.file.find(name + ".w")->shape[0]),
        k(golden.file.find(name + ".w")->shape[1]),
        n(int(golden.file.find(name + ".x")->shape[0])) {}

  /// ‖X·(W − Ŵ)ᵀ‖².
  double error(const std::vector<Half>& pruned) const {
    double sum = 0;
    for (int t = 0; t < n; ++t) {
      for (int64_t row = 0; row < m; ++row) {
        double y = 0;
        for (int64_t i = 0; i < k; ++i) {
          const double change =
              double(to_float(w[size_t(row * k + i)])) - double(to_float(pruned[size_t(row * k + i)]));
          y += double(to_float(x[size_t(t * k + i)])) * change;
        }
        sum += y * y;
      }
    }
    return sum;
  }
};

const std::vector<std::string> kCases = {"one_block", "three_blocks", "fewer_tokens_than_inputs"};

TEST(Wanda, MasksAreNumPys) {
  const Golden golden;
  Device device(cpu_backend(), {.threads = 2});
  ThreadPool pool(2);
  for (const std::string& name : kCases) {
    const Case c(golden, name);
    std::vector<double> squares(static_cast<size_t>(c.k));
    device.ops().input_statistics(
        device.context(), {.x = c.x.data(), .n = c.n, .k = c.k, .squares = squares.data(), .gram = nullptr});
    for (const int percent : {30, 50, 60, 70}) {
      auto pruned = c.w;
      prune_wanda(pruned.data(), c.m, c.k, squares, percent / 100.0, pool);
      const auto kept = golden.values<uint8_t>(fmt::format("{}.wanda.{}", name, percent));
      for (size_t i = 0; i < kept.size(); ++i)
        ASSERT_EQ(pruned[i], kept[i] ? c.w[i] : Half{}) << name << " " << percent << " " << i;
    }
  }
}

TEST(SparseGpt, ErrorIsNumPysAndFarBelowMagnitudes) {
  const Golden golden;
  Device device(cpu_backend(), {.threads = 2});
  ThreadPool pool(2);
  for (const std::string& name : kCases) {
    const Case c(golden, name);
    std::vector<double> squares(static_cast<size_t>(c.k));
    std::vector<float> gram(static_cast<size_t>(c.k * c.k));
    device.ops().input_statistics(
        device.context(),
        {.x = c.x.data(), .n = c.n, .k = c.k, .squares = squares.data(), .gram = gram.data()});
    ASSERT_TRUE(
        device.ops().inverse_factor(device.context(), {.gram = gram.data(), .k = c.k, .dampening = 0.01}));
    for (const int percent : {30, 50, 60, 70}) {
      std::vector<float> wide;
      for (size_t i = 0; i < c.w.size(); ++i)
        wide.push_back(squares[i % size_t(c.k)] > 0 ? to_float(c.w[i]) : 0);
      device.ops().sparsegpt(
          device.context(),
          {.w = wide.data(), .factor = gram.data(), .m = c.m, .k = c.k, .sparsity = percent / 100.0});
      std::vector<Half> pruned(c.w.size()), magnitude = c.w;
      std::transform(wide.begin(), wide.end(), pruned.begin(), to_half);
      prune_matrix(magnitude.data(), c.m, c.k, percent / 100.0, PruneScope::row, pool);
      const double expected =
          golden.values<double>(fmt::format("{}.sparsegpt_error.{}", name, percent)).front();
      EXPECT_NEAR(c.error(pruned), expected, 0.01 * expected) << name << " " << percent;
      EXPECT_LE(c.error(pruned), 0.8 * c.error(magnitude)) << name << " " << percent;
    }
  }
}

TEST(Wanda, EqualScoresGoInOrderAndDeadInputsFirst) {
  ThreadPool pool(2);
  const std::vector<double> squares = {4, 4, 0, 4, 4, 4};
  std::vector<Half> w(12, to_half(0.5f));
  w[2] = to_half(100.0f);  // on the dead input
  prune_wanda(w.data(), 2, 6, squares, 0.5, pool);
  for (size_t i = 0; i < 12; ++i) EXPECT_EQ(is_zero(w[i]), i % 6 < 3) << i;
}

TEST(Owl, KeepsTheMeanAndTheRange) {
  const std::vector<double> shares = {0.01, 0.03, 0.02, 0.02};
  const auto sparsity = allocate_by_outliers(shares, 0.6, 0.08);
  EXPECT_NEAR(std::accumulate(sparsity.begin(), sparsity.end(), 0.0) / 4, 0.6, 1e-12);
  EXPECT_NEAR(sparsity[0] - sparsity[1], 0.16, 1e-12);
  EXPECT_NEAR(sparsity[2], 0.6, 1e-12);
  EXPECT_EQ(allocate_by_outliers({0.5, 0.5}, 0.7, 0.08), (std::vector<double>{0.7, 0.7}));
  // Where a layer stops at 1, the others take what it cannot.
  const auto full = allocate_by_outliers({0, 1}, 0.99, 0.3);
  EXPECT_EQ(full[0], 1);
  EXPECT_NEAR(full[1], 0.98, 1e-12);
  for (const double layer : allocate_by_outliers({0, 1, 3}, 1, 0.08)) EXPECT_NEAR(layer, 1, 1e-12);
}

// ---- layer by layer

const CalibrationSamples kSamples = {
    {1, 5, 39, 7, 7, 0, 12},
    {3, 3, 3},
    {20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31, 32, 33, 34, 35, 36, 1, 2}};

/// A model directory "in" and room for outputs beside it.
struct Workshop {
  TemporaryDirectory dir;
  fs::path in = dir.path() / "in", out = dir.path() / "out";
  ModelConfig config;
  ThreadPool pool{2};
  Device device{cpu_backend(), {.threads = 2}};
  explicit Workshop(const char* text = kTinyLlama) : config(parse_config(text, "test")) {
    write_checkpoint(in, text, tiny_tensors(config, Dtype::f16));
  }
  void prune(PruneMethod method, const fs::path& to, PruneOptions options = {}) {
    options.method = method;
    options.min_sparsity = 0;
    prune_calibrated(in, to, options, kSamples, device, pool);
  }
  std::string prune_error(PruneMethod method) {
    try {
      prune(method, out);
    } catch (const Error& error) {
      return error.what();
    }
    return "no error";
  }
  std::vector<std::string> beside() const {
    std::vector<std::string> names;
    for (const auto& entry : fs::directory_iterator(dir.path())) names.push_back(entry.path().filename());
    std::sort(names.begin(), names.end());
    return names;
  }
  DenseMatrix matrix(const fs::path& from, const std::string& name, int64_t m, int64_t k) {
    const HostMatrix matrix = Checkpoint(from, pool).block(name, m, k, {0, m}, {0, k});
    const auto* packed = std::get_if<TcaBmeMatrix>(&matrix);
    return packed ? decode(packed->view(), pool) : std::get<DenseMatrix>(matrix);
  }
};

std::string bytes_of_file(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

/// What the last layer leaves in h, by the whole forward, one sample at a time.
std::vector<Half> hidden_states(const Workshop& shop) {
  ModelRunner runner = ModelRunner::load(shop.in, {.dense = true});
  std::vector<Half> states;
  for (const auto& sample : kSamples) {
    runner.restart();
    runner.append(sample);
    const auto h = runner.workspace().h.download(int64_t(sample.size()) * shop.config.hidden_size);
    states.insert(states.end(), h.begin(), h.end());
  }
  return states;
}

TEST(Calibration, GoesThroughTheLayersAsTheForwardDoes) {
  for (const char* text : {kTinyLlama, kTinyOpt, kTinyOpt350m}) {
    Workshop shop(text);
    const Checkpoint checkpoint(shop.in, shop.pool);
    const WeightSource source = checkpoint_source(checkpoint, shop.config);
    Calibration calibration(shop.device, build_embeddings(shop.config, source, shop.device, shop.pool),
                            kSamples);
    EXPECT_EQ(calibration.tokens(), 29);
    for (int i = 0; i < shop.config.layers; ++i) {
      const Model layer = build_layer(shop.config, source, shop.device, shop.pool, i);
      int linears = 0;
      const auto count = [&](const LinearWeight&, const Half*, int n) { linears += n == 29; };
      calibration.run(layer, Calibration::After::keep, count, {});
      EXPECT_EQ(linears, 4) << "all samples are one batch";
      calibration.run(layer, Calibration::After::advance, {}, {});
    }
    EXPECT_EQ(calibration.hidden_states(), hidden_states(shop)) << text;
  }
}

TEST(PruneCalibrated, PrunesEveryLinearAndKeepsTheRest) {
  for (const char* text : {kTinyLlama, kTinyOpt, kTinyOpt350m}) {
    for (const PruneMethod method : {PruneMethod::wanda, PruneMethod::sparsegpt}) {
      Workshop shop(text);
      int64_t last = 0;
      PruneOptions options;
      options.progress = [&](int64_t done, int64_t total) {
        EXPECT_LE(done, total);
        last = done * 100 / total;
      };
      options.layer_sparsity = {0.5, 0.75};
      shop.prune(method, shop.out, options);
      EXPECT_EQ(last, 100);
      EXPECT_EQ(shop.beside(), (std::vector<std::string>{"in", "out"}));
      const auto summary = summarize_checkpoint(shop.out, 0, shop.pool);
      for (const LinearSummary& linear : summary.linears) {
        const bool first = linear.name.find("layers.0.") != std::string::npos;
        EXPECT_EQ(linear.nonzeros, linear.m * linear.k / (first ? 2 : 4)) << linear.name;
      }
      for (const TensorSpec& spec : weight_table(shop.config).other_tensors()) {
        const DenseMatrix before = Checkpoint(shop.in, shop.pool).tensor(spec);
        const DenseMatrix after = Checkpoint(shop.out, shop.pool).tensor(spec);
        EXPECT_TRUE(std::equal(before.data, before.data + before.m * before.k, after.data)) << spec.name;
      }
    }
  }
}

TEST(PruneCalibrated, DenseOutputHoldsTheSameWeights) {
  Workshop shop;
  const fs::path dense = shop.dir.path() / "dense";
  shop.prune(PruneMethod::sparsegpt, shop.out);
  shop.prune(PruneMethod::sparsegpt, dense, {.dense_output = true});
  for (const LinearSummary& linear : summarize_checkpoint(dense, 0, shop.pool).linears) {
    EXPECT_FALSE(Checkpoint(dense, shop.pool).is_packed(linear.name));
    const DenseMatrix a = shop.matrix(shop.out, linear.name, linear.m, linear.k);
    const DenseMatrix b = shop.matrix(dense, linear.name, linear.m, linear.k);
    EXPECT_TRUE(std::equal(a.data, a.data + a.m * a.k, b.data)) << linear.name;
  }
}

TEST(PruneCalibrated, LaterLayersSeeThePrunedOnes) {
  Workshop shop;
  const fs::path other = shop.dir.path() / "other";
  shop.prune(PruneMethod::sparsegpt, shop.out, {.layer_sparsity = {0.0, 0.5}});
  shop.prune(PruneMethod::sparsegpt, other, {.layer_sparsity = {0.9, 0.5}});
  EXPECT_NE(bytes_of_file(shop.out / "model.safetensors"), bytes_of_file(other / "model.safetensors"));
  const std::string name = "model.layers.1.mlp.down_proj.weight";
  const DenseMatrix a = shop.matrix(shop.out, name, 16, 24), b = shop.matrix(other, name, 16, 24);
  EXPECT_FALSE(std::equal(a.data, a.data + a.m * a.k, b.data));
}

// ---- interruption

struct Interrupted {};

TEST(PruneCalibrated, InterruptedAnywhereGoesOnToTheSameBytes) {
  for (const PruneMethod method : {PruneMethod::wanda, PruneMethod::sparsegpt}) {
    Workshop shop;
    const fs::path whole = shop.dir.path() / "whole";
    int steps = 0;
    shop.prune(method, whole, {.progress = [&](int64_t, int64_t) { ++steps; }});
    for (int stop = 1; stop <= steps; ++stop) {
      int seen = 0;
      std::vector<std::string> notes;
      EXPECT_THROW(shop.prune(method, shop.out,
                              {.progress =
                                   [&](int64_t, int64_t) {
                                     if (++seen == stop) throw Interrupted();
                                   }}),
                   Interrupted);
      EXPECT_FALSE(fs::exists(shop.out));
      const bool kept = fs::exists(shop.dir.path() / ".out.pruning");
      shop.prune(method, shop.out, {.note = [&](const std::string& note) { notes.push_back(note); }});
      EXPECT_EQ(notes.size(), size_t(kept)) << stop;
      EXPECT_EQ(bytes_of_file(shop.out / "model.safetensors"), bytes_of_file(whole / "model.safetensors"))
          << stop;
      EXPECT_EQ(shop.beside(), (std::vector<std::string>{"in", "out", "whole"}));
      fs::remove_all(shop.out);
    }
  }
}

TEST(PruneCalibrated, AnotherRequestStartsAnew) {
  Workshop shop;
  const auto interrupt_late = [](int64_t done, int64_t total) {
    if (done * 10 >= total * 7) throw Interrupted();
  };
  EXPECT_THROW(shop.prune(PruneMethod::wanda, shop.out, {.sparsity = 0.5, .progress = interrupt_late}),
               Interrupted);
  ASSERT_TRUE(fs::exists(shop.dir.path() / ".out.pruning" / "layer-00000" / "model.safetensors"));
  std::vector<std::string> notes;
  shop.prune(PruneMethod::wanda, shop.out,
             {.sparsity = 0.75, .note = [&](const std::string& note) { notes.push_back(note); }});
  EXPECT_TRUE(notes.empty());
  for (const LinearSummary& linear : summarize_checkpoint(shop.out, 0, shop.pool).linears)
    EXPECT_EQ(linear.nonzeros, linear.m * linear.k / 4) << linear.name;
}

TEST(PruneCalibrated, DeletesNothingThatIsNotItsOwn) {
  Workshop shop;
  const fs::path state = shop.dir.path() / ".out.pruning", letters = shop.dir.path() / "letters";
  fs::create_directory(letters);
  write_file(letters / "state.json", "dear");
  fs::create_directory_symlink(letters, state);
  EXPECT_THROW(shop.prune(PruneMethod::wanda, shop.out, {}), Error);  // a link
  EXPECT_TRUE(fs::exists(letters / "state.json"));
  fs::remove(state);
  for (const char* name : {"diary", "layer-", "layer-00000x"}) {
    fs::create_directory(state);
    write_file(state / name, "dear");
    write_file(state / "state.json", "another request");
    EXPECT_THROW(shop.prune(PruneMethod::wanda, shop.out, {}), Error) << name;
    EXPECT_TRUE(fs::exists(state / name)) << name;
    EXPECT_TRUE(fs::exists(state / "state.json")) << name;
    fs::remove_all(state);
  }
  // Nor where an interrupted run of the same request left its layers.
  const auto interrupt_late = [](int64_t done, int64_t total) {
    if (done * 10 >= total * 7) throw Interrupted();
  };
  EXPECT_THROW(shop.prune(PruneMethod::wanda, shop.out, {.progress = interrupt_late}), Interrupted);
  write_file(state / "diary", "dear");
  EXPECT_THROW(shop.prune(PruneMethod::wanda, shop.out, {}), Error);
  EXPECT_TRUE(fs::exists(state / "layer-00000"));
  fs::remove(state / "diary");
  shop.prune(PruneMethod::wanda, shop.out, {});
  EXPECT_EQ(shop.beside(), (std::vector<std::string>{"in", "letters", "out"}));
}

// ---- layers that have something wrong with them

void set_tensor(const Workshop& shop, const std::string& name,
                const std::function<float(size_t, float)>& value) {
  change_file(shop.in, [&](std::vector<TinyTensor>& tensors, auto&) {
    for (TinyTensor& tensor : tensors) {
      if (tensor.name != name) continue;
      for (size_t i = 0; i < tensor.bytes.size() / 2; ++i) {
        Half h;
        std::memcpy(&h, tensor.bytes.data() + 2 * i, 2);
        h = to_half(value(i, to_float(h)));
        std::memcpy(tensor.bytes.data() + 2 * i, &h, 2);
      }
    }
  });
}

TEST(PruneCalibrated, NanWeightsAreRefusedByName) {
  const std::string name = "model.layers.1.mlp.up_proj.weight";
  for (const PruneMethod method : {PruneMethod::wanda, PruneMethod::sparsegpt}) {
    Workshop shop;
    set_tensor(shop, name, [](size_t i, float v) { return i == 5 ? NAN : v; });
    EXPECT_NE(shop.prune_error(method).find(name), std::string::npos);
    EXPECT_FALSE(fs::exists(shop.out));
  }
}

TEST(PruneCalibrated, InputsThatOverflowAreRefusedByName) {
  Workshop shop;
  set_tensor(shop, "model.layers.0.post_attention_layernorm.weight", [](size_t, float) { return 65504.0f; });
  for (const PruneMethod method : {PruneMethod::wanda, PruneMethod::sparsegpt}) {
    const std::string error = shop.prune_error(method);
    EXPECT_NE(error.find("model.layers.0.mlp."), std::string::npos) << error;
    EXPECT_NE(error.find("not finite"), std::string::npos) << error;
    EXPECT_EQ(shop.beside(), std::vector<std::string>{"in"});
  }
}

TEST(PruneCalibrated, DeadInputsGoFirst) {
  Workshop shop;
  set_tensor(shop, "model.layers.0.input_layernorm.weight",
             [](size_t i, float v) { return i % 4 == 1 ? 0 : v; });
  for (const PruneMethod method : {PruneMethod::wanda, PruneMethod::sparsegpt}) {
    std::vector<std::string> notes;
    shop.prune(method, shop.out, {.note = [&](const std::string& note) { notes.push_back(note); }});
    ASSERT_EQ(notes.size(), 1u);
    EXPECT_NE(notes[0].find("4 of 16 inputs"), std::string::npos) << notes[0];
    const DenseMatrix w = shop.matrix(shop.out, "model.layers.0.self_attn.q_proj.weight", 16, 16);
    int64_t zeros = 0;
    for (int64_t i = 0; i < 256; ++i) {
      zeros += is_zero(w.data[i]);
      if (i % 4 == 1) {
        EXPECT_TRUE(is_zero(w.data[i])) << i;
      }
    }
    EXPECT_EQ(zeros, 128);
    fs::remove_all(shop.out);
  }
}

TEST(PruneCalibrated, ALayerThatSeesNothingIsRefusedByNameOrLeftToTheOrder) {
  Workshop shop;
  set_tensor(shop, "model.layers.0.self_attn.v_proj.weight", [](size_t, float) { return 0.0f; });
  const std::string error = shop.prune_error(PruneMethod::sparsegpt);
  EXPECT_NE(error.find("model.layers.0.self_attn.o_proj.weight: all of its 16 inputs are zero"),
            std::string::npos)
      << error;
  shop.prune(PruneMethod::wanda, shop.out);  // any half of o_proj is as good as any other
  for (const LinearSummary& linear : summarize_checkpoint(shop.out, 0, shop.pool).linears)
    EXPECT_LE(linear.nonzeros, linear.m * linear.k / 2) << linear.name;
}

TEST(PruneCalibrated, EqualWeightsAndRankDeficientHessians) {
  for (const PruneMethod method : {PruneMethod::wanda, PruneMethod::sparsegpt}) {
    Workshop shop;
    set_tensor(shop, "model.layers.0.mlp.gate_proj.weight", [](size_t, float) { return 0.25f; });
    PruneOptions options;
    options.method = method;
    prune_calibrated(shop.in, shop.out, options, {{1, 2}}, shop.device,
                     shop.pool);  // rank 2 of 16 and 24
    for (const LinearSummary& linear : summarize_checkpoint(shop.out, 0, shop.pool).linears)
      EXPECT_EQ(linear.nonzeros, linear.m * linear.k / 2) << linear.name;
  }
}

TEST(PruneCalibrated, AHessianThatCannotBeFactoredIsRefusedByName) {
  Workshop shop;
  PruneOptions options;
  options.method = PruneMethod::sparsegpt;
  options.dampening = 0;
  try {
    prune_calibrated(shop.in, shop.out, options, {{1, 1, 1}}, shop.device, shop.pool);
    FAIL() << "rank 1 without dampening";
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("model.layers.0.self_attn.q_proj.weight: the Hessian"),
              std::string::npos)
        << error.what();
  }
}

TEST(PruneCalibrated, BadSamplesAndOptionsAreRefused) {
  Workshop shop;
  const auto error_of = [&](const CalibrationSamples& samples, PruneOptions options) -> std::string {
    try {
      prune_calibrated(shop.in, shop.out, options, samples, shop.device, shop.pool);
    } catch (const Error& error) {
      return error.what();
    }
    return "no error";
  };
  EXPECT_NE(error_of({}, {}).find("no sample"), std::string::npos);
  EXPECT_NE(error_of({{1, 40}}, {}).find("40 must be 0…39"), std::string::npos);
  EXPECT_NE(error_of({{-1}}, {}).find("-1"), std::string::npos);
  EXPECT_NE(error_of({{}}, {}).find("0 tokens"), std::string::npos);
  EXPECT_NE(error_of({std::vector<int32_t>(65, 1)}, {}).find("65 tokens; must be 1…64"), std::string::npos);
  EXPECT_NE(error_of({{1}}, {.layer_sparsity = {0.5}}).find("1 sparsities are given for 2 layers"),
            std::string::npos);
  EXPECT_NE(error_of({{1}}, {.layer_sparsity = {0.5, 1.5}}).find("1.5"), std::string::npos);
  EXPECT_EQ(shop.beside(), std::vector<std::string>{"in"});
}

TEST(OwlSparsity, OfAModel) {
  Workshop shop;
  OwlOptions options;
  options.sparsity = 0.6;
  options.outlier = 2;
  const auto sparsity = owl_sparsity(shop.in, options, kSamples, shop.device, shop.pool);
  ASSERT_EQ(sparsity.size(), 2u);
  EXPECT_NEAR(sparsity[0] + sparsity[1], 1.2, 1e-12);
  EXPECT_NEAR(std::abs(sparsity[0] - sparsity[1]), 0.16, 1e-12);
}

}  // namespace
}  // namespace spinfer::test
