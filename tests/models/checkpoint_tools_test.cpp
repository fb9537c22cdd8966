// pack and prune: what they write, and that they write it whole or not at all.
#include "models/checkpoint_tools.h"

#include <gtest/gtest.h>
#include <sys/resource.h>

#include <algorithm>
#include <csignal>
#include <random>

#include "kernels/check.h"
#include "models/checkpoint.h"
#include "models/json_text.h"
#include "models/pruning/magnitude.h"
#include "tests/models/model_runner.h"
#include "tests/models/tiny_checkpoint.h"
#include "tests/temporary_directory.h"
#include "tokenizer/file_set.h"

namespace spinfer::test {
namespace {

namespace fs = std::filesystem;

const std::vector<int32_t> kIds = {1, 5, 39, 7, 7, 0, 12};

/// A tiny model in "in", and its directory's parent to write into.
struct Input {
  TemporaryDirectory dir;
  fs::path in = dir.path() / "in", out = dir.path() / "out";
  ThreadPool pool{2};
  explicit Input(double zeros = 0, Dtype dtype = Dtype::f32, const char* config = kTinyLlama) {
    write_checkpoint(in, config, tiny_tensors(parse_config(config, "test"), dtype, zeros));
  }
  std::vector<std::string> beside() const {
    std::vector<std::string> names;
    for (const auto& entry : fs::directory_iterator(dir.path())) names.push_back(entry.path().filename());
    std::sort(names.begin(), names.end());
    return names;
  }
};

const std::vector<std::string> kOnlyInput = {"in"};

TEST(PruneMatrix, EachRowLosesItsSmallest) {
  std::vector<Half> w;
  for (const float f : {0.5f, -0.1f, 0.3f, -0.4f, 0.2f, 1.0f, 1.0f, -1.0f, 1.0f, 1.0f})
    w.push_back(to_half(f));
  ThreadPool pool(2);
  prune_matrix(w.data(), 2, 5, 0.5, PruneScope::row, pool);  // round(2.5) = 3
  const float expected[] = {0.5f, 0, 0, -0.4f, 0, 0, 0, 0, 1.0f, 1.0f};
  for (size_t i = 0; i < w.size(); ++i) EXPECT_EQ(to_float(w[i]), to_float(to_half(expected[i]))) << i;
}

TEST(PruneMatrix, TheMatrixLosesItsSmallestFirstAmongEqual) {
  std::vector<Half> w;
  for (const float f : {1.0f, 2.0f, 2.0f, 2.0f, -2.0f, 5.0f, 0.25f, 2.0f, 7.0f}) w.push_back(to_half(f));
  ThreadPool pool(2);
  prune_matrix(w.data(), 3, 3, 0.5, PruneScope::layer, pool);  // round(4.5) = 5
  const float expected[] = {0, 0, 0, 0, -2.0f, 5.0f, 0, 2.0f, 7.0f};
  for (size_t i = 0; i < w.size(); ++i) EXPECT_EQ(to_float(w[i]), expected[i]) << i;
}

TEST(PruneMatrix, ExactCountsAtEverySparsity) {
  std::mt19937 random(3);
  ThreadPool pool(3);
  const int64_t m = 37, k = 101;
  for (const double sparsity : {0.0, 0.01, 0.3, 0.5, 0.77, 0.999, 1.0}) {
    for (const PruneScope scope : {PruneScope::row, PruneScope::layer}) {
      std::vector<Half> w(size_t(m * k));
      for (Half& h : w)
        h = to_half(float(1 + random() % 50) * (random() % 2 ? 0.125f : -0.125f));  // many equal
      const auto before = w;
      prune_matrix(w.data(), m, k, sparsity, scope, pool);
      int64_t zeros = 0;
      float largest_gone = 0, smallest_left = 1e9f;
      for (int64_t row = 0; row < m; ++row) {
        int64_t row_zeros = 0;
        for (int64_t i = row * k; i < (row + 1) * k; ++i) {
          const float size = std::abs(to_float(before[size_t(i)]));
          if (is_zero(w[size_t(i)])) {
            ++row_zeros;
            largest_gone = std::max(largest_gone, size);
          } else {
            EXPECT_EQ(w[size_t(i)], before[size_t(i)]);
            smallest_left = std::min(smallest_left, size);
          }
        }
        if (scope == PruneScope::row) {
          EXPECT_EQ(row_zeros, std::llround(sparsity * double(k)));
        }
        zeros += row_zeros;
      }
      if (scope == PruneScope::layer) {
        EXPECT_EQ(zeros, std::llround(sparsity * double(m * k)));
        if (zeros > 0 && zeros < m * k) {
          EXPECT_LE(largest_gone, smallest_left);
        }
      }
    }
  }
}

TEST(Prune, PackedAndDenseOutputHoldTheSameWeights) {
  for (const PruneScope scope : {PruneScope::row, PruneScope::layer}) {
    for (const double sparsity : {0.0, 0.5, 1.0}) {
      const Input input(0, Dtype::f32, kTinyOpt);
      PruneOptions options{.sparsity = sparsity, .scope = scope};
      options.min_sparsity = 0;
      ThreadPool pool(2);
      prune_magnitude(input.in, input.dir.path() / "packed", options, pool);
      options.dense_output = true;
      prune_magnitude(input.in, input.dir.path() / "dense", options, pool);
      const auto packed = summarize_checkpoint(input.dir.path() / "packed", 0.3, pool);
      const auto dense = summarize_checkpoint(input.dir.path() / "dense", 0.3, pool);
      ASSERT_EQ(packed.linears.size(), 12u);
      const Checkpoint a(input.dir.path() / "packed", pool), b(input.dir.path() / "dense", pool);
      for (size_t i = 0; i < packed.linears.size(); ++i) {
        const LinearSummary& l = packed.linears[i];
        EXPECT_TRUE(a.is_packed(l.name));
        EXPECT_FALSE(b.is_packed(l.name));
        EXPECT_EQ(l.nonzeros, dense.linears[i].nonzeros);
        EXPECT_EQ(l.nonzeros, l.m * l.k - std::llround(sparsity * double(l.m * l.k)));
        const DenseMatrix x = decode(a.packed(l.name, l.m, l.k).view(), pool);
        const DenseMatrix y = b.dense_block(l.name, l.m, l.k, {0, l.m}, {0, l.k});
        EXPECT_TRUE(std::equal(x.data, x.data + l.m * l.k, y.data)) << l.name;
      }
      LoadOptions as_dense;
      as_dense.dense = true;
      EXPECT_EQ(ModelRunner::load(input.dir.path() / "packed", as_dense, 1, 16).append(kIds),
                ModelRunner::load(input.dir.path() / "dense", as_dense, 1, 16).append(kIds));
    }
  }
}

TEST(Prune, TakesPackedInput) {
  Input input;
  PruneOptions options{.sparsity = 0.4};
  prune_magnitude(input.in, input.dir.path() / "a", options, input.pool);
  options.sparsity = 0.6;
  prune_magnitude(input.dir.path() / "a", input.dir.path() / "b", options, input.pool);
  prune_magnitude(input.in, input.dir.path() / "c", options, input.pool);
  EXPECT_EQ(ModelRunner::load(input.dir.path() / "b", {}, 1, 16).append(kIds),
            ModelRunner::load(input.dir.path() / "c", {}, 1, 16).append(kIds));
}

TEST(Prune, RefusesSparsityOutOfRange) {
  Input input;
  for (const double sparsity : {-0.1, 1.1, std::nan("")}) {
    EXPECT_THROW(prune_magnitude(input.in, input.out, {.sparsity = sparsity}, input.pool), Error) << sparsity;
  }
  EXPECT_EQ(input.beside(), kOnlyInput);
}

TEST(Pack, KeepsDenseWhatHasFewZerosAndCopiesTheOtherFiles) {
  Input input(0.5);
  write_file(input.in / "tokenizer.model", "pieces");
  write_file(input.in / "generation_config.json", R"({"eos_token_id": 3})");
  write_file(input.in / "pytorch_model.bin", "not copied");
  pack_checkpoint(input.in, input.out, 0.8, input.pool, {});
  const auto runner = ModelRunner::load(input.out, {.min_sparsity = 0.8}, 1, 16);
  EXPECT_EQ(runner.model().report.dense_linears, 8);
  EXPECT_EQ(read_text_file(input.out / "tokenizer.model", 100), "pieces");
  EXPECT_EQ(load_config(input.out).eos_ids, (std::vector<int32_t>{2, 3}));
  EXPECT_FALSE(fs::exists(input.out / "pytorch_model.bin"));
  EXPECT_EQ(input.beside(), (std::vector<std::string>{"in", "out"}));
}

TEST(Pack, CopiesEveryFileThatTokenizersRead) {
  Input input(0.5);
  for (const std::string_view name : FileSet::kKnownNames) write_file(input.in / name, std::string(name));
  pack_checkpoint(input.in, input.out, 0.3, input.pool, {});
  for (const std::string_view name : FileSet::kKnownNames) {
    ASSERT_TRUE(fs::exists(input.out / name)) << name;
    EXPECT_EQ(read_text_file(input.out / name, 100), name);
  }
}

TEST(Rewriting, RefusesWhatItWouldLeaveOut) {
  for (const char* extra : {"model.layers.1.mlp.down_proj.bias", "model.layers.2.mlp.down_proj.weight"}) {
    Input input;
    auto tensors = tiny_tensors(parse_config(kTinyLlama, "test"), Dtype::f16);
    tensors.push_back({extra, Dtype::f16, {16}, std::vector<std::byte>(32)});
    fs::remove_all(input.in);
    write_checkpoint(input.in, kTinyLlama, tensors);
    EXPECT_THROW(pack_checkpoint(input.in, input.out, 0.3, input.pool, {}), Error) << extra;
    EXPECT_THROW(unpack_checkpoint(input.in, input.out, input.pool, {}), Error) << extra;
    EXPECT_THROW(prune_magnitude(input.in, input.out, {}, input.pool), Error) << extra;
    EXPECT_THROW(summarize_checkpoint(input.in, 0.3, input.pool), Error) << extra;
    EXPECT_EQ(input.beside(), kOnlyInput);
  }
}

TEST(Pack, OfAPackedDirectoryIsTheSame) {
  Input input(0.5);
  pack_checkpoint(input.in, input.out, 0.3, input.pool, {});
  pack_checkpoint(input.out, input.dir.path() / "again", 0.3, input.pool, {});
  EXPECT_EQ(read_text_file(input.out / "model.safetensors", 1 << 20),
            read_text_file(input.dir.path() / "again" / "model.safetensors", 1 << 20));
}

TEST(Pack, IntoAnEmptyDirectoryAndWithATrailingSlash) {
  Input input(0.5);
  fs::create_directory(input.out);
  pack_checkpoint(input.in, input.out.string() + "/", 0.3, input.pool, {});
  EXPECT_TRUE(fs::exists(input.out / "model.safetensors"));
  EXPECT_EQ(input.beside(), (std::vector<std::string>{"in", "out"}));
}

TEST(Pack, ReportsProgressUpToTheTotal) {
  Input input(0.5);
  int64_t last = 0, total = 0;
  pack_checkpoint(input.in, input.out, 0.3, input.pool, [&](int64_t done, int64_t all) {
    EXPECT_GT(done, last);
    last = done;
    total = all;
  });
  EXPECT_EQ(last, total);
  EXPECT_EQ(total, 2 * plan_weights(load_config(input.in), 0, {}).parameters);
}

std::string pack_error(const fs::path& in, const fs::path& out,
                       const std::function<void(int64_t, int64_t)>& progress = {}) {
  ThreadPool pool(1);
  try {
    pack_checkpoint(in, out, 0.3, pool, progress);
    return "packed";
  } catch (const std::exception& e) {
    return e.what();
  }
}

TEST(Pack, RefusesOutputsThatAreInTheWay) {
  Input input(0.5);
  EXPECT_NE(pack_error(input.in, input.in).find("are the same directory"), std::string::npos);
  EXPECT_NE(pack_error(input.in, input.dir.path() / "absent" / "out").find("no such directory"),
            std::string::npos);
  fs::create_symlink("circle", input.dir.path() / "circle");
  EXPECT_NE(pack_error(input.in, input.dir.path() / "circle" / "out").find("circle: cannot be reached: "),
            std::string::npos);
  fs::remove(input.dir.path() / "circle");
  write_file(input.out, "a file");
  EXPECT_NE(pack_error(input.in, input.out).find("exists and is no directory"), std::string::npos);
  fs::remove(input.out);
  fs::create_directory(input.out);
  write_file(input.out / "x", "");
  EXPECT_NE(pack_error(input.in, input.out).find("must not exist or be empty"), std::string::npos);
  fs::remove_all(input.out);
  EXPECT_NE(pack_error(input.dir.path() / "absent", input.out).find("absent: no such file or directory"),
            std::string::npos);
  EXPECT_EQ(input.beside(), kOnlyInput);
}

TEST(Pack, AnInterruptionAtAnyMomentLeavesNothing) {
  Input input(0.5);
  int steps = 0;
  ASSERT_EQ(pack_error(input.in, input.out, [&](int64_t, int64_t) { ++steps; }), "packed");
  fs::remove_all(input.out);
  ASSERT_GT(steps, 10);
  for (int stop = 1; stop <= steps; ++stop) {
    int step = 0;
    EXPECT_EQ(pack_error(input.in, input.out,
                         [&](int64_t, int64_t) {
                           if (++step == stop) throw std::runtime_error("interrupted");
                         }),
              "interrupted");
    EXPECT_EQ(input.beside(), kOnlyInput) << stop;
  }
}

TEST(Pack, ADamagedInputLeavesNothing) {
  Input input(0.5);
  fs::resize_file(input.in / "model.safetensors", fs::file_size(input.in / "model.safetensors") - 1);
  EXPECT_NE(pack_error(input.in, input.out).find("model.safetensors: "), std::string::npos);
  EXPECT_EQ(input.beside(), kOnlyInput);
}

TEST(Pack, AFullDiskLeavesNothing) {
  const Input input(0.5);
  std::signal(SIGXFSZ, SIG_IGN);
  rlimit before{};
  getrlimit(RLIMIT_FSIZE, &before);
  for (const rlim_t bytes : {0, 100, 5'000, 20'000}) {
    rlimit small = before;
    small.rlim_cur = bytes;
    setrlimit(RLIMIT_FSIZE, &small);
    const std::string message = pack_error(input.in, input.out);
    setrlimit(RLIMIT_FSIZE, &before);
    EXPECT_NE(message.find("File too large"), std::string::npos) << message;
    EXPECT_EQ(input.beside(), kOnlyInput);
  }
}

}  // namespace
}  // namespace spinfer::test
