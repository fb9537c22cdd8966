// The CUDA ops against the CPU's, element by element. Skipped where there is no GPU.
#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <limits>

#include "kernels/check.h"
#include "kernels/cuda/context.h"
#include "kernels/cuda/linear_plan.h"
#include "kernels/thread_pool.h"
#include "tests/kernels/cuda_ops.h"

namespace spinfer::test {
namespace {

using CudaRows = CudaOps;
using CudaNorm = CudaOps;
using CudaRope = CudaOps;
using CudaMemory = CudaOps;
using CudaLogits = CudaOps;
using CudaLinear = CudaOps;

TEST_F(CudaMemory, UploadsAndDownloadsAnySize) {
  Random random(1);
  for (const size_t size : {size_t{1}, size_t{1000}, size_t{3} << 20, size_t{9} << 20}) {
    const std::vector<Half> host = random.halves(size);
    Guarded<Half> memory = on_gpu(host);
    EXPECT_EQ(memory.get(), host) << size;
    ops().fill_zero(context(), memory.data(), size * sizeof(Half));
    EXPECT_EQ(memory.get(), std::vector<Half>(size)) << size;
  }
  const DeviceInfo info = gpu().info();
  EXPECT_GT(info.total_bytes, info.free_bytes);
  EXPECT_GT(info.free_bytes, 0);
}

TEST_F(CudaMemory, ManySmallUploadsKeepTheirValues) {
  std::vector<std::unique_ptr<Guarded<int32_t>>> arrays;
  for (int i = 0; i < 300; ++i)  // together more than the staging memory
    arrays.push_back(std::make_unique<Guarded<int32_t>>(gpu(), std::vector<int32_t>(5000 + i, i)));
  for (int i = 0; i < 300; ++i) EXPECT_EQ(arrays[size_t(i)]->get(), std::vector<int32_t>(5000 + i, i));
}

TEST_F(CudaMemory, AskingForTooMuchIsAnError) {
  EXPECT_THROW(ops().allocate(context(), size_t{1} << 50), Error);
}

TEST_F(CudaRows, EmbedEqualsTheCpu) {
  Random random(1);
  for (const int d : {1, 7, 8, 96, 768, 4096, 5000}) {
    for (const bool accumulate : {false, true}) {
      const int rows = 37, n = 19;
      const auto table = random.halves(size_t(rows) * d), before = random.halves(size_t(n) * d);
      std::vector<int32_t> ids;
      for (int i = 0; i < n; ++i) ids.push_back(random.below(rows) - 2);
      EmbedArgs args{.ids = ids.data(),
                     .id_offset = 2,
                     .table = table.data(),
                     .rows = rows,
                     .n = n,
                     .d = d,
                     .accumulate = accumulate,
                     .out = nullptr};
      auto want = accumulate ? before : nan_halves(before.size());
      const auto gpu_out = on_gpu(want), gpu_table = on_gpu(table);
      const auto gpu_ids = on_gpu(ids);
      args.out = want.data();
      cpu_.ops().embed(cpu_.context(), args);
      args.ids = gpu_ids.data();
      args.table = gpu_table.data();
      args.out = gpu_out.data();
      ops().embed(context(), args);
      EXPECT_EQ(gpu_out.get(), want) << d;
    }
  }
}

TEST_F(CudaRows, EmbedReportsAnIdOutsideTheTableOnce) {
  const auto table = on_gpu(std::vector<Half>(64)), out = on_gpu(std::vector<Half>(24));
  for (const int bad : {-1, 8}) {
    const auto ids = on_gpu(std::vector<int32_t>{0, bad, 7});
    ops().embed(context(),
                {.ids = ids.data(), .table = table.data(), .rows = 8, .n = 3, .d = 8, .out = out.data()});
    EXPECT_THROW(ops().synchronize(context()), Error);
    EXPECT_NO_THROW(ops().synchronize(context()));
  }
}

TEST_F(CudaRows, GatherRowsCopies) {
  Random random(2);
  for (const int d : {1, 5, 8, 1000, 5120}) {
    const auto src = random.halves(size_t(50) * d);
    std::vector<int32_t> rows;
    std::vector<Half> want;
    for (int i = 0; i < 23; ++i) {
      rows.push_back(random.below(50));
      want.insert(want.end(), src.begin() + rows.back() * d, src.begin() + (rows.back() + 1) * d);
    }
    const auto gpu_src = on_gpu(src), out = on_gpu(nan_halves(want.size()));
    const auto gpu_rows = on_gpu(rows);
    ops().gather_rows(context(),
                      {.src = gpu_src.data(), .rows = gpu_rows.data(), .n = 23, .d = d, .out = out.data()});
    EXPECT_EQ(out.get(), want) << d;
  }
}

TEST_F(CudaRows, GatedActivationIsNearTheCpu) {
  Random random(3);
  for (const int f : {1, 7, 8, 300, 11008}) {
    for (const Activation act :
         {Activation::none, Activation::relu, Activation::gelu, Activation::gelu_tanh, Activation::silu}) {
      const int n = 11;
      const auto gate_up = random.halves(size_t(n) * 2 * f, 3);
      auto want = nan_halves(size_t(n) * f);
      const auto in = on_gpu(gate_up), out = on_gpu(want);
      cpu_.ops().gated_activation(
          cpu_.context(), {.gate_up = gate_up.data(), .n = n, .f = f, .act = act, .out = want.data()});
      ops().gated_activation(context(),
                             {.gate_up = in.data(), .n = n, .f = f, .act = act, .out = out.data()});
      EXPECT_TRUE(near(out.get(), doubles(want), {2e-5, 0x1.8p-10})) << f << " act " << int(act);
    }
  }
}

TEST_F(CudaNorm, IsNearTheCpu) {
  Random random(4);
  const auto optional = [](bool there, auto* pointer) { return there ? pointer : nullptr; };
  for (const int d : {1, 5, 8, 64, 257, 768, 4096, 8192, 12288, 33000}) {
    for (int variant = 0; variant < 32; ++variant) {
      const bool layer = variant & 1, gain = variant & 2, bias = variant & 4, delta = variant & 8,
                 in_place = variant & 16;
      if (d > 8192 && variant % 5) continue;
      const int n = 3;
      const auto h = random.halves(size_t(n) * d, 2, 0.5f);
      auto more = random.halves(size_t(n) * d);
      const auto gains = random.halves(d), biases = random.halves(d);
      auto cpu_h = h, cpu_out = nan_halves(h.size());
      const auto gpu_h = on_gpu(h), gpu_more = on_gpu(more), gpu_gain = on_gpu(gains),
                 gpu_bias = on_gpu(biases), gpu_out = on_gpu(cpu_out);
      AddNormArgs args{.h = cpu_h.data(),
                       .delta = optional(delta, more.data()),
                       .kind = layer ? NormKind::layer : NormKind::rms,
                       .gain = optional(gain, gains.data()),
                       .bias = optional(bias, biases.data()),
                       .eps = 1e-5f,
                       .n = n,
                       .d = d,
                       .out = in_place ? cpu_h.data() : cpu_out.data()};
      cpu_.ops().add_norm(cpu_.context(), args);
      args.h = gpu_h.data();
      args.delta = optional(delta, gpu_more.data());
      args.gain = optional(gain, gpu_gain.data());
      args.bias = optional(bias, gpu_bias.data());
      args.out = in_place ? gpu_h.data() : gpu_out.data();
      ops().add_norm(context(), args);
      const Tolerance tolerance{4e-4, 0x1p-10};  // a difference of two numbers of size 4 rounded to fp16
      if (in_place) {
        EXPECT_TRUE(near(gpu_h.get(), doubles(cpu_h), tolerance)) << d << " variant " << variant;
      } else {
        EXPECT_EQ(gpu_h.get(), cpu_h) << d << " variant " << variant;
        EXPECT_TRUE(near(gpu_out.get(), doubles(cpu_out), tolerance)) << d << " variant " << variant;
      }
    }
  }
}

TEST_F(CudaNorm, AdditionAlone) {
  Random random(5);
  const auto h = random.halves(3 * 100);
  auto delta = random.halves(3 * 100), want = h;
  const auto gpu_h = on_gpu(h), gpu_delta = on_gpu(delta);
  AddNormArgs args{.h = want.data(),
                   .delta = delta.data(),
                   .kind = NormKind::rms,
                   .gain = nullptr,
                   .bias = nullptr,
                   .eps = 0,
                   .n = 3,
                   .d = 100,
                   .out = nullptr};
  cpu_.ops().add_norm(cpu_.context(), args);
  args.h = gpu_h.data();
  args.delta = gpu_delta.data();
  ops().add_norm(context(), args);
  EXPECT_EQ(gpu_h.get(), want);
}

TEST_F(CudaRope, RotatesAndAppendsLikeTheCpu) {
  Random random(6);
  for (const int dim : {1, 2, 7, 16, 20, 64, 80, 96, 128, 256}) {
    for (const auto& [q, kv, block_size] : {std::tuple{1, 1, 16}, {8, 2, 16}, {5, 5, 3}}) {
      for (const bool rotate : {true, false}) {
        const int n = 9, blocks = 7;
        const auto qkv = random.halves(size_t(n) * (q + 2 * kv) * dim);
        std::vector<int32_t> positions, slots;
        std::vector<float> inv_freq(size_t(dim / 2) + 1, 0.0f);
        for (int i = 0; i < dim / 2; ++i) inv_freq[size_t(i)] = float(std::pow(10000.0, -2.0 * i / dim));
        for (int i = 0; i < n; ++i) {
          positions.push_back(random.below(5000));
          slots.push_back(i == 4 ? -1 : i * blocks * block_size / n);
        }
        auto want = qkv, k = nan_halves(size_t(blocks) * kv * block_size * dim), v = k;
        const auto gpu_qkv = on_gpu(qkv), gpu_k = on_gpu(k), gpu_v = on_gpu(v);
        const auto gpu_positions = on_gpu(positions), gpu_slots = on_gpu(slots);
        const auto gpu_freq = on_gpu(inv_freq);
        RopeAppendArgs args{.qkv = want.data(),
                            .positions = positions.data(),
                            .slots = slots.data(),
                            .inv_freq = rotate ? inv_freq.data() : nullptr,
                            .n = n,
                            .q_heads = q,
                            .kv_heads = kv,
                            .head_dim = dim,
                            .block_size = block_size,
                            .kv = {k.data(), v.data()}};
        cpu_.ops().rope_append(cpu_.context(), args);
        args.qkv = gpu_qkv.data();
        args.positions = gpu_positions.data();
        args.slots = gpu_slots.data();
        args.inv_freq = rotate ? gpu_freq.data() : nullptr;
        args.kv = {gpu_k.data(), gpu_v.data()};
        ops().rope_append(context(), args);
        // The cache: equal where the CPU wrote, untouched (NaN) elsewhere.
        const auto expect_near = [&](const std::vector<Half>& got, const std::vector<Half>& expected) {
          for (size_t i = 0; i < got.size(); ++i) {
            const double x = to_double(got[i]), y = to_double(expected[i]);
            if (std::isnan(x) && std::isnan(y)) continue;
            ASSERT_LE(std::abs(x - y), 2e-3 + 0x1p-10 * std::abs(y))
                << i << " of " << dim << " rotate " << rotate;
          }
        };
        expect_near(gpu_qkv.get(), want);
        expect_near(gpu_k.get(), k);
        EXPECT_EQ(gpu_v.get(), v) << dim;
      }
    }
  }
}

TEST_F(CudaLogits, DenseHeadWithAndWithoutBias) {
  Random random(7);
  for (const auto& [m, k] : {std::pair{1003, 96}, {50272, 64}, {512, 4096}}) {
    const auto w = random.halves(size_t(m) * k, 0.1f), bias = random.halves(m);
    for (const int n : {1, 5, 33}) {
      for (const bool with_bias : {false, true}) {
        const auto x = random.halves(size_t(n) * k);
        DenseMatrix matrix;
        matrix.m = m;
        matrix.k = k;
        matrix.data = w.data();
        const Half* b = with_bias ? bias.data() : nullptr;
        const LinearWeight on_cpu = cpu_.ops().prepare_linear(cpu_.context(), matrix, b, false);
        const LinearWeight weight = ops().prepare_linear(context(), matrix, b, false);
        std::vector<float> want(size_t(n) * m, NAN);
        const auto out = on_gpu(want);
        const auto gpu_x = on_gpu(x);
        cpu_.ops().logits(cpu_.context(), {.w = on_cpu.view, .x = x.data(), .n = n, .logits = want.data()});
        ops().logits(context(), {.w = weight.view, .x = gpu_x.data(), .n = n, .logits = out.data()});
        EXPECT_TRUE(near(out.get(), doubles(want), {1e-3, 1e-5})) << m << "×" << k << " n " << n;
      }
    }
  }
}

TEST_F(CudaLogits, PackedHeadWithAnyNumberOfRows) {
  Random random(8);
  const int m = 1003, k = 200;
  auto w = random.halves(size_t(m) * k, 0.1f);
  for (size_t i = 0; i < w.size(); ++i)
    if (random.below(2)) w[i] = Half{};
  const auto bias = random.halves(m);
  ThreadPool pool(2);
  const TcaBmeMatrix packed = encode(DenseMatrix{m, k, w.data(), nullptr}, pool);
  const LinearWeight on_cpu = cpu_.ops().prepare_linear(cpu_.context(), packed, bias.data(), false);
  const LinearWeight weight = ops().prepare_linear(context(), packed, bias.data(), false);
  for (const int n : {1, 33, 96, 97, 200}) {  // the decode kernel takes 96 at a time
    const auto x = random.halves(size_t(n) * k);
    std::vector<float> want(size_t(n) * m, NAN);
    const auto out = on_gpu(want);
    const auto gpu_x = on_gpu(x);
    cpu_.ops().logits(cpu_.context(), {.w = on_cpu.view, .x = x.data(), .n = n, .logits = want.data()});
    ops().logits(context(), {.w = weight.view, .x = gpu_x.data(), .n = n, .logits = out.data()});
    EXPECT_TRUE(near(out.get(), doubles(want), {1e-3, 1e-5})) << "n " << n;
  }
}

/// A weight with half of its elements zero, on both devices.
struct SparseWeight {
  std::vector<Half> bias;
  LinearWeight on_cpu, on_gpu;

  SparseWeight(Device& cpu, Device& gpu, Random& random, int m, int k, bool gated, bool with_bias) {
    auto values = std::make_shared<std::vector<Half>>(random.halves(size_t(m) * k, 1 / std::sqrt(float(k))));
    for (Half& value : *values)
      if (random.below(2)) value = Half{};
    if (with_bias) bias = random.halves(m);
    ThreadPool pool(2);
    const TcaBmeMatrix packed = encode(DenseMatrix{m, k, values->data(), values}, pool);
    const Half* b = with_bias ? bias.data() : nullptr;
    on_cpu = cpu.ops().prepare_linear(cpu.context(), packed, b, gated);
    on_gpu = gpu.ops().prepare_linear(gpu.context(), packed, b, gated);
  }
};

/// Under a sanitizer, which takes a hundred times as long.
bool is_reduced() {
  return std::getenv("SPINFER_GPU_TEST_REDUCED") != nullptr;
}

/// Where linears gate and defer norms.
bool is_hopper(Device& gpu) {
  return cuda::kBuiltForHopper && cuda::context_of(gpu.context()).facts().compute_capability == 90;
}

TEST_F(CudaLinear, GatedEqualsTheCpu) {
  Random random(9);
  // 1000: no pairs; 17408: more teams of strips than multiprocessors
  for (const auto& [f, k] :
       {std::pair{32, 64}, {96, 200}, {352, 128}, {640, 1000}, {1000, 256}, {2048, 2048}, {17408, 64}}) {
    if (is_reduced() && f != 96 && f != 352) continue;
    for (const bool with_bias : {false, true}) {
      const SparseWeight w(cpu_, gpu(), random, 2 * f, k, true, with_bias);
      for (const int n : {1, 8, 13, 33, 64, 96, 130}) {
        for (const Activation act : {Activation::silu, Activation::relu}) {
          const auto x = random.halves(size_t(n) * k);
          std::vector<Half> gate_up(size_t(n) * 2 * f), want = nan_halves(size_t(n) * f);
          const auto gpu_x = on_gpu(x), scratch = on_gpu(nan_halves(gate_up.size())), out = on_gpu(want);
          cpu_.ops().gated_linear(cpu_.context(), {.w = w.on_cpu.view,
                                                   .x = x.data(),
                                                   .n = n,
                                                   .act = act,
                                                   .gate_up = gate_up.data(),
                                                   .y = want.data()});
          ops().gated_linear(context(), {.w = w.on_gpu.view,
                                         .x = gpu_x.data(),
                                         .n = n,
                                         .act = act,
                                         .gate_up = scratch.data(),
                                         .y = out.data()});
          ASSERT_TRUE(near(out.get(), doubles(want), {2e-3, 2e-3}))
              << f << "×" << k << " n " << n << " bias " << with_bias << " act " << int(act);
          if (is_hopper(gpu()) && f % 32 == 0 && n <= kMostDeferringTokens) {
            const auto untouched = scratch.get();
            ASSERT_TRUE(std::all_of(untouched.begin(), untouched.end(), [](Half value) {
              return std::isnan(to_float(value));
            })) << "gate and up took a pass of their own";
          }
        }
      }
    }
  }
}

/// A weight prepared as gated is a weight as any other.
TEST_F(CudaLinear, GatedWeightInAPlainLinear) {
  Random random(10);
  const int f = 352, k = 192;
  const SparseWeight w(cpu_, gpu(), random, 2 * f, k, true, true);
  for (const int n : {1, 13, 64, 130}) {
    const auto x = random.halves(size_t(n) * k), residual = random.halves(size_t(n) * 2 * f);
    auto want = nan_halves(residual.size());
    const auto gpu_x = on_gpu(x), gpu_residual = on_gpu(residual), out = on_gpu(want);
    LinearArgs args{.w = w.on_cpu.view,
                    .x = x.data(),
                    .n = n,
                    .act = Activation::gelu,
                    .residual = residual.data(),
                    .y = want.data()};
    cpu_.ops().linear(cpu_.context(), args);
    ops().linear(context(), {.w = w.on_gpu.view,
                             .x = gpu_x.data(),
                             .n = n,
                             .act = Activation::gelu,
                             .residual = gpu_residual.data(),
                             .y = out.data()});
    EXPECT_TRUE(near(out.get(), doubles(want), {1e-3, 1e-3})) << "n " << n;
  }
}

/// h += from·x, then to·norm(h), by the CPU's ops in turn and on the GPU with the norm left to `to`.
class DeferredNormCase {
 public:
  DeferredNormCase(Device& cpu, Device& gpu, Random& random, NormKind kind, int d, int k, bool gated, int n)
      : cpu_(cpu),
        gpu_(gpu),
        kind_(kind),
        d_(d),
        m_(d > 10000 ? 64 : 704),
        n_(n),
        gated_(gated),
        from_(cpu, gpu, random, d, k, false, d == 200),
        to_(cpu, gpu, random, m_, d, gated, layer()),
        gain_(random.halves(d, 0.8f)),
        bias_(random.halves(layer() ? d : 0)),
        x_(random.halves(size_t(n) * k, n == 16 ? 1e-2f : 1.0f)),
        h_(random.halves(size_t(n) * d,
                         n == 8    ? 30.0f
                         : n == 16 ? 1e-2f
                                   : 1.0f,
                         n == 40 ? 2.0f : 0.0f)) {}

  bool is_deferred() const {
    return gpu_.ops().defers_norm(gpu_.context(), from_.on_gpu.view, to_.on_gpu.view, n_);
  }
  const std::vector<Half>& h() const { return h_; }

  struct Result {
    std::vector<Half> h, y;
  };
  Result on_cpu() const {
    Result r{h_, nan_halves(y_size())};
    std::vector<Half> normed(h_.size()), inner(size_t(n_) * m_);
    cpu_.ops().linear(
        cpu_.context(),
        {.w = from_.on_cpu.view, .x = x_.data(), .n = n_, .residual = r.h.data(), .y = r.h.data()});
    cpu_.ops().add_norm(cpu_.context(), {.h = r.h.data(),
                                         .delta = nullptr,
                                         .kind = kind_,
                                         .gain = gain_.data(),
                                         .bias = layer() ? bias_.data() : nullptr,
                                         .eps = kEps,
                                         .n = n_,
                                         .d = d_,
                                         .out = normed.data()});
    multiply(cpu_, to_.on_cpu, normed.data(), inner.data(), r.y.data(), nullptr);
    return r;
  }
  Result on_gpu(const std::vector<Half>& before) const {
    const auto array = [&](const auto& host) { return Guarded(gpu_, host); };
    const auto gain = array(gain_), bias = array(bias_), x = array(x_), h = array(before);
    const auto y = array(nan_halves(y_size())), inner = array(nan_halves(size_t(n_) * m_));
    const auto late = array(nan_halves(h_.size()));
    const auto moments = array(std::vector<uint64_t>(size_t(moment_words(kind_, n_))));
    const auto products = array(std::vector<float>(size_t(2 * m_), NAN));
    DeferredNorm norm{.kind = kind_,
                      .gain = gain.data(),
                      .bound = n_ == 13 ? 1.0f : 4.0f,
                      .eps = kEps,
                      .x = late.data(),
                      .moments = moments.data()};
    if (layer()) {
      Linear without_bias = to_.on_gpu.view;
      without_bias.bias = nullptr;
      gpu_.ops().logits(gpu_.context(),
                        {.w = without_bias, .x = gain.data(), .n = 1, .logits = products.data()});
      gpu_.ops().logits(gpu_.context(),
                        {.w = to_.on_gpu.view, .x = bias.data(), .n = 1, .logits = products.data() + m_});
      norm.gain_product = products.data();
      norm.bias_product = products.data() + m_;
    }
    gpu_.ops().linear(gpu_.context(), {.w = from_.on_gpu.view,
                                       .x = x.data(),
                                       .n = n_,
                                       .residual = h.data(),
                                       .y = h.data(),
                                       .norm_of_y = &norm});
    multiply(gpu_, to_.on_gpu, late.data(), inner.data(), y.data(), &norm);
    return {h.get(), y.get()};
  }

 private:
  static constexpr float kEps = 1e-6f;

  bool layer() const { return kind_ == NormKind::layer; }
  size_t y_size() const { return size_t(n_) * (gated_ ? m_ / 2 : m_); }
  void multiply(Device& device, const LinearWeight& w, const Half* x, Half* inner, Half* y,
                const DeferredNorm* norm) const {
    if (gated_) {
      device.ops().gated_linear(device.context(), {.w = w.view,
                                                   .x = x,
                                                   .n = n_,
                                                   .act = Activation::silu,
                                                   .gate_up = inner,
                                                   .y = y,
                                                   .norm_of_x = norm});
    } else {
      device.ops().linear(device.context(),
                          {.w = w.view, .x = x, .n = n_, .act = Activation::relu, .y = y, .norm_of_x = norm});
    }
  }

  Device& cpu_;
  Device& gpu_;
  NormKind kind_;
  int d_, m_, n_;
  bool gated_;
  SparseWeight from_, to_;
  std::vector<Half> gain_, bias_, x_, h_;
};

TEST_F(CudaLinear, ADeferredNormEqualsTheNorm) {
  if (!is_hopper(gpu())) GTEST_SKIP() << "no Hopper GPU: no norm is deferred";
  Random random(11);
  for (const auto& [d, k] : {std::pair{64, 96}, {200, 64}, {1000, 512}, {4096, 1024}, {16384, 64}}) {
    if (is_reduced() && d != 200) continue;
    for (const NormKind kind : {NormKind::rms, NormKind::layer})
      for (const bool gated : {false, true})
        for (const int n : {1, 8, 13, 16, 40, 64, 96}) {
          if (d > 10000 && n != 8 && n != 40) continue;  // slow on the CPU
          SCOPED_TRACE(testing::Message() << d << " kind " << int(kind) << " gated " << gated << " n " << n);
          const DeferredNormCase c(cpu_, gpu(), random, kind, d, k, gated, n);
          ASSERT_TRUE(c.is_deferred());
          const auto want = c.on_cpu(), got = c.on_gpu(c.h());
          ASSERT_TRUE(near(got.h, doubles(want.h), {1e-3, 1e-3}));
          ASSERT_TRUE(near(got.y, doubles(want.y), {n == 40 ? 8e-3 : 4e-3, 2e-3}));
          if (n != 13) continue;
          // The same bits again, and a token whose row is no number spoils no other.
          auto spoilt = c.h();
          spoilt[5] = to_half(std::numeric_limits<float>::infinity());
          spoilt[size_t(d) + 7] = to_half(std::numeric_limits<float>::quiet_NaN());
          const auto again = c.on_gpu(c.h()), others = c.on_gpu(spoilt);
          ASSERT_EQ(again.y, got.y);
          const ptrdiff_t row = ptrdiff_t(got.y.size()) / n;
          ASSERT_TRUE(std::equal(got.y.begin() + 2 * row, got.y.end(), others.y.begin() + 2 * row));
          ASSERT_TRUE(std::any_of(others.y.begin(), others.y.begin() + 2 * row,
                                  [](Half value) { return std::isnan(to_float(value)); }));
        }
  }
}

TEST_F(CudaRows, NothingToDoIsLegal) {
  ops().embed(context(), {.ids = nullptr, .table = nullptr, .rows = 1, .n = 0, .d = 8, .out = nullptr});
  ops().gather_rows(context(), {.src = nullptr, .rows = nullptr, .n = 0, .d = 8, .out = nullptr});
  ops().gated_activation(context(),
                         {.gate_up = nullptr, .n = 0, .f = 8, .act = Activation::silu, .out = nullptr});
  EXPECT_NO_THROW(ops().synchronize(context()));
}

}  // namespace
}  // namespace spinfer::test
