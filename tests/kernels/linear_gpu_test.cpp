// The CUDA linear against an fp32-accumulated reference: every kernel, every n class, odd sizes, awkward
// masks, poisoned and guarded buffers, epilogues, and bitwise equality from run to run. Skipped where there
// is no GPU.
#include <gtest/gtest.h>

#include <cstdlib>
#include <cstring>
#include <map>

#include "kernels/check.h"
#include "kernels/cuda/cuda_check.h"
#include "kernels/cuda/dense_linear.h"
#include "kernels/cuda/linear.h"
#include "kernels/cuda/spmm.h"
#include "kernels/cuda/strip_stream_decode.h"
#include "kernels/thread_pool.h"
#include "tests/kernels/gpu_matrix.h"
#include "tests/kernels/relative_error.h"

namespace spinfer::cuda {
namespace {

constexpr double kTolerance = 5e-4;
constexpr int kTokens[] = {1, 3, 8, 13, 17, 31, 64, 65, 96, 100, 257};

bool is_set(const char* variable) {
  const char* value = std::getenv(variable);
  return value && std::strcmp(value, "0") != 0;
}

/// compute-sanitizer slows kernels a hundredfold: SPINFER_GPU_TEST_REDUCED=1 keeps one size of each kind.
bool reduced() {
  return is_set("SPINFER_GPU_TEST_REDUCED");
}

/// For compute-sanitizer's racecheck, SPINFER_GPU_TEST_RACECHECK=1. It ends with an error of its own at
/// kernels that it does not instrument, and takes minutes for cuBLAS's: what runs those is left out. Ours let
/// slots go in the way that it follows (`Context::for_racecheck`).
bool for_racecheck() {
  return is_set("SPINFER_GPU_TEST_RACECHECK");
}

struct EpilogueCase {
  bool bias;
  Activation act;
  bool residual;
  bool in_place;  ///< the residual is y itself
};
constexpr EpilogueCase kPlain{false, Activation::none, false, false};
constexpr EpilogueCase kEpilogues[] = {
    kPlain,
    {true, Activation::none, false, false},
    {true, Activation::relu, false, false},
    {false, Activation::none, true, true},
    {true, Activation::gelu_tanh, false, false},
    {true, Activation::gelu, true, false},
    {false, Activation::silu, true, true},
};

struct MatrixCase {
  int64_t m, k;
  Mask mask = Mask::random;
  double sparsity = 0.5;
};

class LinearGpu : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    if (device_count() == 0) return;
    context_ = new Context(DeviceOptions{});
    context_->for_racecheck = for_racecheck();
  }
  static void TearDownTestSuite() {
    delete context_;
    context_ = nullptr;
  }
  void SetUp() override {
    if (!context_) GTEST_SKIP() << "no CUDA device";
  }
  void TearDown() override {
    for (const auto& [kernel, summary] : summaries_)
      std::printf("  %-8s %5d cases, largest relative error %.2e\n", to_string(kernel).data(), summary.cases,
                  summary.worst);
  }

  /// The kernels that can multiply this weight with n tokens on this GPU.
  static std::vector<LinearKernel> kernels_for(const Linear& w, int n) {
    std::vector<LinearKernel> kernels;
    for (const LinearKernel kernel : {LinearKernel::dense, LinearKernel::smbd, LinearKernel::stream,
                                      LinearKernel::scratch, LinearKernel::fused})
      if (can_run(kernel, problem_of(w, n), context_->facts()) && !(for_racecheck() && uses_cublas(kernel)))
        kernels.push_back(kernel);
    return kernels;
  }

  static bool uses_cublas(LinearKernel kernel) {
    return kernel == LinearKernel::dense || kernel == LinearKernel::scratch;
  }

  /// Multiplies twice with each kernel and compares.
  void check_matrix(const MatrixCase& c, std::initializer_list<int> tokens, const EpilogueCase& e = kPlain) {
    check_matrix(c, std::vector<int>(tokens), e);
  }
  void check_matrix(const MatrixCase& c, const std::vector<int>& tokens, const EpilogueCase& e = kPlain) {
    Context& context = *context_;
    const uint64_t seed = ++seed_;
    GuardedHalves dense(context, c.m * c.k), bias(context, c.m);
    fill_masked(context, dense.data(), c.m, c.k, c.mask, c.sparsity, seed);
    bias.fill_random(seed + 1000, 0.5f);
    const LinearWeight packed = prepare_packed(context, encode_on_device(context, dense.data(), c.m, c.k),
                                               e.bias ? bias.data() : nullptr, {.keep_canonical = true});
    Linear dense_view;
    dense_view.m = c.m;
    dense_view.k = c.k;
    dense_view.dense = dense.data();
    dense_view.bias = packed.view.bias;

    for (const int n : tokens) {
      GuardedHalves x(context, n * c.k), residual(context, n * c.m), y(context, n * c.m);
      x.fill_random(seed + 2000, 1.0f);
      residual.fill_random(seed + 3000, 1.0f);
      LinearArgs args{.w = packed.view, .x = x.data(), .n = n, .act = e.act, .y = y.data()};
      args.residual = e.residual ? residual.data() : nullptr;
      const std::vector<float> expected = reference_linear(context, args, dense.data());
      for (const Linear* w : {&packed.view, static_cast<const Linear*>(&dense_view)}) {
        for (const LinearKernel kernel : kernels_for(*w, n)) {
          const std::string what = fmt::format("{} {}×{} n={} {} s={} bias={} act={} residual={}{}",
                                               to_string(kernel), c.m, c.k, n, to_string(c.mask), c.sparsity,
                                               e.bias, int(e.act), e.residual, e.in_place ? " in place" : "");
          SCOPED_TRACE(what);
          LinearArgs run{.w = *w, .x = x.data(), .n = n, .act = e.act, .y = y.data()};
          run.residual = args.residual;
          check_kernel(run, kernel, e, residual, y, expected);
          EXPECT_TRUE(x.intact() && dense.intact() && bias.intact()) << "wrote beside an input";
        }
      }
    }
  }

  static std::vector<Half> multiply(LinearArgs args, LinearKernel kernel, const EpilogueCase& e,
                                    const GuardedHalves& residual, GuardedHalves& y) {
    y.fill_nan();
    if (e.in_place) {
      SPINFER_CUDA_CHECK(cudaMemcpyAsync(y.data(), residual.data(), size_t(y.size()) * sizeof(Half),
                                         cudaMemcpyDeviceToDevice, context_->stream()));
      args.residual = y.data();
    }
    linear_with(*context_, args, kernel);
    return y.download();
  }

  void check_kernel(const LinearArgs& args, LinearKernel kernel, const EpilogueCase& e,
                    const GuardedHalves& residual, GuardedHalves& y, const std::vector<float>& expected) {
    const std::vector<Half> first = multiply(args, kernel, e, residual, y);
    const std::vector<Half> second = multiply(args, kernel, e, residual, y);
    const double error = relative_error(first, expected);
    EXPECT_LT(error, kTolerance);
    EXPECT_EQ(std::memcmp(first.data(), second.data(), first.size() * sizeof(Half)), 0)
        << "differs from run to run";
    EXPECT_TRUE(y.intact()) << "wrote beside y";
    Summary& summary = summaries_[kernel];
    ++summary.cases;
    summary.worst = std::max(summary.worst, error);
  }

  struct Summary {
    int cases = 0;
    double worst = 0;
  };
  static inline Context* context_ = nullptr;
  static inline uint64_t seed_ = 1;
  std::map<LinearKernel, Summary> summaries_;
};

const std::vector<int> kAllTokens(std::begin(kTokens), std::end(kTokens));

TEST_F(LinearGpu, OddSizes) {
  if (reduced()) {
    check_matrix({17, 31}, {3, 17, 90});
    check_matrix({130, 200}, {8, 17, 64, 90, 257});
    return;
  }
  for (const auto& [m, k] :
       {std::pair{16, 16}, {17, 31}, {64, 64}, {65, 200}, {128, 1000}, {333, 777}, {80, 2056}})
    check_matrix({m, k}, kAllTokens);
}

TEST_F(LinearGpu, ModelSizes) {
  if (reduced()) {
    check_matrix({512, 1024}, {8, 13, 32, 64, 128, 257});  // slots are used again
    check_matrix({16, 8192}, {8});                         // one team, more blocks than a round of its sums
    return;
  }
  check_matrix({4096, 4096}, kAllTokens);
  check_matrix({5120, 13824, Mask::random, 0.6}, {8, 257});
  check_matrix({11008, 4096, Mask::random, 0.7}, {16, 32, 257});
  check_matrix({1024, 1024}, {512, 1000, 2048});
}

TEST_F(LinearGpu, LongestSides) {
  if (reduced()) GTEST_SKIP() << "reduced run";
  for (const auto& [m, k] : {std::pair{50272, 16}, {16, 50272}, {50272, 1024}, {1000, 50271}, {50265, 768}})
    check_matrix({m, k}, {1, 8, 13, 17, 64, 90, 100});
}

TEST_F(LinearGpu, EverySparsity) {
  if (reduced()) {
    for (const double s : {0.0, 1.0}) check_matrix({130, 264, Mask::random, s}, {8, 128});
    return;
  }
  for (const double s : {0.0, 0.05, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0}) {
    check_matrix({513, 1111, Mask::random, s}, {1, 8, 31, 64, 100});
    check_matrix({1032, 2048, Mask::random, s}, {8, 17, 257});
  }
}

TEST_F(LinearGpu, UnevenMasks) {
  for (const Mask mask : {Mask::one_dense_row, Mask::one_dense_tile, Mask::one_empty_strip, Mask::one_lane}) {
    if (reduced()) {
      check_matrix({200, 328, mask, 0.0}, {8, 128});
      continue;
    }
    for (const double s : {0.0, 0.5}) {
      check_matrix({777, 1096, mask, s}, kAllTokens);
      check_matrix({2048, 4096, mask, s}, {8, 32, 257});
    }
  }
}

TEST_F(LinearGpu, Epilogues) {
  for (const EpilogueCase& e : kEpilogues) {
    if (reduced()) {
      check_matrix({72, 136}, {8, 100}, e);
      continue;
    }
    check_matrix({333, 777}, kAllTokens, e);
    check_matrix({1024, 512, Mask::random, 0.6}, {1, 16, 64, 128, 257}, e);
  }
}

TEST_F(LinearGpu, ZeroTokensDoNothing) {
  GuardedHalves dense(*context_, 64 * 64);
  dense.fill_random(1, 1);
  const LinearWeight w =
      prepare_packed(*context_, encode_on_device(*context_, dense.data(), 64, 64), nullptr, {});
  GuardedHalves y(*context_, 64);
  linear(opaque(*context_), LinearArgs{.w = w.view, .x = dense.data(), .n = 0, .y = y.data()});
  for (const Half h : y.download()) EXPECT_EQ(h.bits, 0xffff);
}

TEST_F(LinearGpu, DeviceEncoderEqualsTheHostEncoder) {
  for (const auto& [m, k] : {std::pair<int64_t, int64_t>{64, 64}, {65, 130}, {333, 777}, {16, 2000}}) {
    GuardedHalves dense(*context_, m * k);
    fill_masked(*context_, dense.data(), m, k, Mask::random, 0.6, 7);
    const DeviceTcaBme device = encode_on_device(*context_, dense.data(), m, k);
    const std::vector<Half> host_dense = dense.download();
    ThreadPool pool(2);
    const TcaBmeMatrix host = encode(DenseMatrix{m, k, host_dense.data(), nullptr}, pool);
    ASSERT_EQ(device.view.nonzeros, host.view().nonzeros);
    const auto same = [](const void* on_device, const void* on_host, size_t bytes) {
      std::vector<char> copy(bytes);
      SPINFER_CUDA_CHECK(cudaMemcpy(copy.data(), on_device, bytes, cudaMemcpyDeviceToHost));
      return std::memcmp(copy.data(), on_host, bytes) == 0;
    };
    const size_t tiles = size_t(host.view().tiles());
    EXPECT_TRUE(
        same(device.view.bitmaps, host.view().bitmaps, tiles * kBitmapsPerGroupTile * sizeof(uint64_t)));
    EXPECT_TRUE(same(device.view.values, host.view().values, size_t(host.view().nonzeros) * sizeof(Half)));
    EXPECT_TRUE(same(device.view.offsets32, host.view().offsets32, (tiles + 1) * sizeof(uint32_t)));

    GuardedHalves decoded(*context_, m * k);
    decode_on_device(*context_, device.view, 0, m, decoded.data());
    EXPECT_EQ(decoded.download(), host_dense);
    EXPECT_TRUE(decoded.intact());
  }
}

TEST_F(LinearGpu, StripStreamsDecodeToTheirMatrix) {
  if (!kBuiltForHopper || context_->facts().compute_capability != 90) GTEST_SKIP() << "no sm_90a";
  for (const auto& [m, k] : {std::pair<int64_t, int64_t>{16, 16},
                             {65, 130},
                             {333, 777},
                             {16, 2000},
                             {128, 1000},
                             {64, 64},
                             {1088, 2056},
                             {4096, 4096},
                             {52032, 128}}) {  // chunks of two blocks, several for each thread block
    if (reduced() && m > 400 && k != 128) continue;
    for (const double sparsity : {0.0, 0.6, 1.0}) {
      if (reduced() && m > 400 && sparsity != 0.6) continue;
      for (const bool paired : {false, true}) {
        if (paired && !StripShape::can_pair(m)) continue;
        SCOPED_TRACE(fmt::format("{}×{} {} {}", m, k, sparsity, paired));
        GuardedHalves dense(*context_, m * k), decoded(*context_, m * k);
        fill_masked(*context_, dense.data(), m, k, Mask::random, sparsity, 7);
        const StripStream streams = make_strip_stream_on_device(
            *context_, encode_on_device(*context_, dense.data(), m, k).view, paired);
        decode_streams_on_device(*context_, streams.view, decoded.data());
        EXPECT_TRUE(decoded.download() == dense.download());
        EXPECT_TRUE(decoded.intact());
      }
    }
  }
}

TEST_F(LinearGpu, HostWeightsMultiplyLikeDeviceWeights) {
  const int64_t m = 200, k = 328;
  GuardedHalves dense(*context_, m * k), x(*context_, 8 * k), y(*context_, 8 * m);
  fill_masked(*context_, dense.data(), m, k, Mask::random, 0.5, 9);
  x.fill_random(10, 1);
  const std::vector<Half> host_dense = dense.download();
  std::vector<Half> bias(size_t(m), to_half(0.25f));
  ThreadPool pool(2);
  const DenseMatrix matrix{m, k, host_dense.data(), nullptr};
  const HostMatrix kinds[] = {matrix, encode(matrix, pool)};
  for (const HostMatrix& host : kinds) {
    if (for_racecheck() && std::holds_alternative<DenseMatrix>(host)) continue;
    const LinearWeight w = prepare_linear(opaque(*context_), host, bias.data());
    EXPECT_EQ(w.view.is_dense(), std::holds_alternative<DenseMatrix>(host));
    EXPECT_GT(w.device_bytes, 0);
    for (const int n : {1, 8}) {
      const LinearArgs args{.w = w.view, .x = x.data(), .n = n, .act = Activation::relu, .y = y.data()};
      y.fill_nan();
      linear(opaque(*context_), args);
      std::vector<Half> result = y.download();
      result.resize(size_t(n * m));
      EXPECT_LT(relative_error(result, reference_linear(*context_, args, dense.data())), kTolerance);
    }
  }
}

TEST_F(LinearGpu, AnInfinityStaysOne) {
  const int64_t m = 70000, k = 64;  // two teams of strips a thread block: nothing goes from one to the next
  const std::vector<Half> ones(size_t(m * k), to_half(1.0f));
  ThreadPool pool(2);
  const LinearWeight w =
      prepare_linear(opaque(*context_), encode(DenseMatrix{m, k, ones.data(), nullptr}, pool), nullptr);
  for (const int n : {8, 16, 32}) {
    if (!can_run(LinearKernel::stream, problem_of(w.view, n), context_->facts())) GTEST_SKIP() << "no sm_90a";
    std::vector<Half> host(size_t(n * k), to_half(0.5f));
    host[size_t(k - 1)].bits = 0x7c00;  // the first token's last
    GuardedHalves x(*context_, n * k), y(*context_, n * m);
    SPINFER_CUDA_CHECK(cudaMemcpy(x.data(), host.data(), host.size() * sizeof(Half), cudaMemcpyHostToDevice));
    linear_with(*context_, LinearArgs{.w = w.view, .x = x.data(), .n = n, .y = y.data()},
                LinearKernel::stream);
    const std::vector<Half> result = y.download();
    for (int64_t i = 0; i < n * m; ++i)
      ASSERT_EQ(result[size_t(i)].bits, i < m ? 0x7c00 : to_half(32.0f).bits) << "n " << n << ", sum " << i;
  }
}

TEST_F(LinearGpu, ATokenDoesNotDependOnTheBatchInSmbd) {
  const int64_t m = 320, k = 2048;
  GuardedHalves dense(*context_, m * k), x(*context_, 64 * k), y(*context_, 64 * m);
  fill_masked(*context_, dense.data(), m, k, Mask::random, 0.5, 11);
  x.fill_random(12, 1);
  const LinearWeight w = prepare_packed(*context_, encode_on_device(*context_, dense.data(), m, k), nullptr,
                                        {.keep_canonical = true});
  std::vector<Half> alone;
  for (const int n : {1, 7, 16, 33, 64}) {
    y.fill_nan();
    linear_with(*context_, LinearArgs{.w = w.view, .x = x.data(), .n = n, .y = y.data()}, LinearKernel::smbd);
    std::vector<Half> first = y.download();
    first.resize(size_t(m));
    if (n == 1) alone = first;
    EXPECT_EQ(first, alone) << "n = " << n;
  }
}

TEST_F(LinearGpu, ATokenDoesNotDependOnTheBatchInADeterministicContext) {
  DeviceOptions options;
  options.deterministic = true;
  Context context(options);
  for (const int64_t k : {2048, 1111}) {
    SCOPED_TRACE(k);
    const int64_t m = 320;
    GuardedHalves dense(context, m * k), x(context, 100 * k), y(context, 100 * m);
    fill_masked(context, dense.data(), m, k, Mask::random, 0.5, 11);
    x.fill_random(12, 1);
    const LinearWeight w =
        prepare_packed(context, encode_on_device(context, dense.data(), m, k), nullptr, {});
    std::vector<Half> alone;
    for (const int n : {1, 7, 16, 17, 33, 64, 65, 96, 100}) {
      y.fill_nan();
      linear(opaque(context), LinearArgs{.w = w.view, .x = x.data(), .n = n, .y = y.data()});
      std::vector<Half> first = y.download();
      first.resize(size_t(m));
      if (n == 1) alone = first;
      EXPECT_EQ(first, alone) << "n = " << n;
    }
  }
}

TEST_F(LinearGpu, DenseTunerTimesAtLeastSixteenCandidates) {
  if (reduced()) GTEST_SKIP() << "reduced run";
  GuardedHalves w(*context_, 4096 * 4096), x(*context_, 16 * 4096), y(*context_, 16 * 4096);
  w.fill_random(1, 0.05f);
  x.fill_random(2, 1);
  DenseArgs args;
  args.m = args.k = 4096;
  args.n = 16;
  args.w = w.data();
  args.x = x.data();
  args.y = y.data();
  const DenseChoice choice = dense_choice(*context_, args);
  std::printf("  4096×4096, 16 tokens: %s, %.1f us, %d candidates\n", choice.algorithm.c_str(), choice.us,
              choice.candidates);
  EXPECT_GE(choice.candidates, 16);
}

TEST_F(LinearGpu, AllocationFailureNamesTheBytes) {
  try {
    context_->allocate(size_t{1} << 50);
    FAIL() << "allocated a petabyte";
  } catch (const Error& e) {
    EXPECT_NE(std::string(e.what()).find("1125899906842624 bytes asked for"), std::string::npos) << e.what();
  }
}

}  // namespace
}  // namespace spinfer::cuda
