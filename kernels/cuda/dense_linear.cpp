#include "kernels/cuda/dense_linear.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <map>
#include <optional>
#include <tuple>
#include <vector>

#include "kernels/check.h"
#include "kernels/cuda/context.h"
#include "kernels/cuda/cuda_check.h"
#include "kernels/cuda/dense_epilogue.h"
#include "kernels/token_bucket.h"

namespace spinfer::cuda {
namespace {

constexpr size_t kMaxCandidates = 40;
constexpr int kHeuristicCandidates = 24;  // asked of cuBLASLt; it returns about 8 for fp16 shapes of models
constexpr size_t kMaxCopies =
    32;  // of W while timing: enough for 4 × L2 from 8 MB up; smaller ones stay warm anyway
constexpr int kFinalists = 4;  // timed at length after a short screening
constexpr int kSlice = 1024;   // tokens whose fp32 product is held at a time where our epilogue finishes it

/// What cuBLASLt's epilogue can do in the multiplication itself.
enum class Fusion { plain, bias, relu, relu_bias, gelu, gelu_bias };

Fusion fusion_of(const DenseArgs& a) {
  switch (a.act) {
    case Activation::relu:
      return a.bias ? Fusion::relu_bias : Fusion::relu;
    case Activation::gelu_tanh:  // cuBLASLt's GELU is the tanh form
      return a.bias ? Fusion::gelu_bias : Fusion::gelu;
    default:
      return a.bias ? Fusion::bias : Fusion::plain;
  }
}

/// True where a kernel of ours must finish the job: cuBLASLt adds the residual before the activation, and
/// knows no erf-GELU or SiLU.
bool needs_own_epilogue(const DenseArgs& a) {
  if (a.act == Activation::none) return false;
  return a.residual || a.act == Activation::gelu || a.act == Activation::silu;
}

cublasLtEpilogue_t lt_epilogue(Fusion fusion) {
  switch (fusion) {
    case Fusion::plain:
      return CUBLASLT_EPILOGUE_DEFAULT;
    case Fusion::bias:
      return CUBLASLT_EPILOGUE_BIAS;
    case Fusion::relu:
      return CUBLASLT_EPILOGUE_RELU;
    case Fusion::relu_bias:
      return CUBLASLT_EPILOGUE_RELU_BIAS;
    case Fusion::gelu:
      return CUBLASLT_EPILOGUE_GELU;
    case Fusion::gelu_bias:
      return CUBLASLT_EPILOGUE_GELU_BIAS;
  }
  return CUBLASLT_EPILOGUE_DEFAULT;
}

int alignment_of(const DenseArgs& a) {
  uintptr_t bits = reinterpret_cast<uintptr_t>(a.w) | reinterpret_cast<uintptr_t>(a.x) |
                   reinterpret_cast<uintptr_t>(a.y) | reinterpret_cast<uintptr_t>(a.residual) | 16;
  return int(bits & -bits);
}

/// cuBLASLt's description of one problem. Column-major, as cuBLAS sees our row-major arrays: y (m×n) =
/// Wᵀ(k×m)ᵀ·x (k×n).
class LtProblem {
 public:
  LtProblem(const DenseArgs& a, int n) {
    SPINFER_CUDA_CHECK(cublasLtMatmulDescCreate(&desc_, CUBLAS_COMPUTE_32F, CUDA_R_32F));
    const cublasOperation_t transpose = CUBLAS_OP_T;
    set(CUBLASLT_MATMUL_DESC_TRANSA, transpose);
    const Fusion fusion = fusion_of(a);
    set(CUBLASLT_MATMUL_DESC_EPILOGUE, lt_epilogue(fusion));
    if (a.bias) {
      set(CUBLASLT_MATMUL_DESC_BIAS_POINTER, a.bias);
      const cudaDataType_t half = CUDA_R_16F;
      set(CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, half);
    }
    const cudaDataType_t out = a.fp32_out ? CUDA_R_32F : CUDA_R_16F;
    SPINFER_CUDA_CHECK(cublasLtMatrixLayoutCreate(&w_, CUDA_R_16F, uint64_t(a.k), uint64_t(a.m), a.k));
    SPINFER_CUDA_CHECK(cublasLtMatrixLayoutCreate(&x_, CUDA_R_16F, uint64_t(a.k), uint64_t(n), a.k));
    SPINFER_CUDA_CHECK(cublasLtMatrixLayoutCreate(&y_, out, uint64_t(a.m), uint64_t(n), a.m));
  }
  ~LtProblem() {
    cublasLtMatrixLayoutDestroy(y_);
    cublasLtMatrixLayoutDestroy(x_);
    cublasLtMatrixLayoutDestroy(w_);
    cublasLtMatmulDescDestroy(desc_);
  }
  LtProblem(const LtProblem&) = delete;
  LtProblem& operator=(const LtProblem&) = delete;

  std::vector<cublasLtMatmulAlgo_t> candidates(Context& context, int alignment, int wanted) const {
    cublasLtMatmulPreference_t preference;
    SPINFER_CUDA_CHECK(cublasLtMatmulPreferenceCreate(&preference));
    const size_t workspace = Context::kBlasWorkspaceBytes;
    const uint32_t bytes = uint32_t(alignment);
    // Parts of a split sum are not rounded to fp16 before they are added (the op contract, kernels/ops.h).
    const uint32_t reductions = CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE;
    SPINFER_CUDA_CHECK(cublasLtMatmulPreferenceSetAttribute(
        preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &workspace, sizeof workspace));
    SPINFER_CUDA_CHECK(cublasLtMatmulPreferenceSetAttribute(
        preference, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, &reductions, sizeof reductions));
    for (const auto attribute :
         {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
          CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES})
      SPINFER_CUDA_CHECK(cublasLtMatmulPreferenceSetAttribute(preference, attribute, &bytes, sizeof bytes));
    std::vector<cublasLtMatmulHeuristicResult_t> results(static_cast<size_t>(wanted));
    int found = 0;
    const cublasStatus_t status = cublasLtMatmulAlgoGetHeuristic(context.lt(), desc_, w_, x_, y_, y_,
                                                                 preference, wanted, results.data(), &found);
    cublasLtMatmulPreferenceDestroy(preference);
    if (status != CUBLAS_STATUS_NOT_SUPPORTED) SPINFER_CUDA_CHECK(status);
    std::vector<cublasLtMatmulAlgo_t> algorithms;
    for (int i = 0; i < found; ++i)
      if (results[size_t(i)].state == CUBLAS_STATUS_SUCCESS) algorithms.push_back(results[size_t(i)].algo);
    return algorithms;
  }

  bool accepts(Context& context, const cublasLtMatmulAlgo_t& algorithm) const {
    cublasLtMatmulHeuristicResult_t result;
    const cublasStatus_t status =
        cublasLtMatmulAlgoCheck(context.lt(), desc_, w_, x_, y_, y_, &algorithm, &result);
    return status == CUBLAS_STATUS_SUCCESS && result.state == CUBLAS_STATUS_SUCCESS &&
           result.workspaceSize <= Context::kBlasWorkspaceBytes;
  }

  cublasStatus_t run(Context& context, const DenseArgs& a, const Half* w, const void* c, void* y,
                     const cublasLtMatmulAlgo_t& algorithm) const {
    const float one = 1, beta = a.residual ? 1 : 0;
    return cublasLtMatmul(context.lt(), desc_, &one, w, w_, a.x, x_, &beta, c, y_, y, y_, &algorithm,
                          context.blas_workspace(), Context::kBlasWorkspaceBytes, context.stream());
  }

 private:
  template <class T>
  void set(cublasLtMatmulDescAttributes_t attribute, const T& value) {
    SPINFER_CUDA_CHECK(cublasLtMatmulDescSetAttribute(desc_, attribute, &value, sizeof value));
  }
  cublasLtMatmulDesc_t desc_ = nullptr;
  cublasLtMatrixLayout_t w_ = nullptr, x_ = nullptr, y_ = nullptr;
};

cublasStatus_t run_gemm_ex(Context& context, const DenseArgs& a, int n, const Half* w, void* y) {
  const float one = 1, zero = 0;
  return cublasGemmEx(context.blas(), CUBLAS_OP_T, CUBLAS_OP_N, int(a.m), n, int(a.k), &one, w, CUDA_R_16F,
                      int(a.k), a.x, CUDA_R_16F, int(a.k), &zero, y, a.fp32_out ? CUDA_R_32F : CUDA_R_16F,
                      int(a.m), CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT);
}

/// What was chosen for a key: cublasGemmEx where `algorithm` is empty.
struct Plan {
  std::optional<cublasLtMatmulAlgo_t> algorithm;
  DenseChoice choice;
  int n = 0;  ///< the n it was timed with
};

using Key = std::tuple<int64_t, int64_t, int, Fusion, bool, bool,
                       int>;  // m, k, bucket, fusion, residual, fp32, alignment

Key key_of(const DenseArgs& a) {
  return {a.m, a.k, token_bucket(a.n), fusion_of(a), a.residual != nullptr, a.fp32_out, alignment_of(a)};
}

/// cublasGemmEx has no epilogue.
bool gemm_ex_can(const DenseArgs& a) {
  return fusion_of(a) == Fusion::plain && !a.residual;
}

/// Times candidates on copies of W that together exceed the L2 cache, so that weights come from memory as in
/// a model.
class Tuner {
 public:
  Tuner(Context& context, const DenseArgs& args) : context_(context), args_(args), problem_(args, args.n) {
    const size_t bytes = size_t(args.m) * size_t(args.k) * sizeof(Half);
    const size_t wanted = size_t(4 * context.facts().l2_bytes);
    const size_t room = size_t(context.info().free_bytes) / 2;
    weights_.push_back(args.w);
    for (size_t total = bytes; total < wanted && total + bytes < room && weights_.size() < kMaxCopies;
         total += bytes) {
      copies_.push_back(context.allocate_shared(bytes));
      SPINFER_CUDA_CHECK(
          cudaMemcpyAsync(copies_.back().get(), args.w, bytes, cudaMemcpyDeviceToDevice, context.stream()));
      weights_.push_back(static_cast<const Half*>(copies_.back().get()));
    }
    y_ = context.allocate_shared(size_t(args.m) * size_t(args.n) *
                                 (args.fp32_out ? sizeof(float) : sizeof(Half)));
    SPINFER_CUDA_CHECK(cudaEventCreate(&begin_));
    SPINFER_CUDA_CHECK(cudaEventCreate(&end_));
  }
  ~Tuner() {
    cudaEventDestroy(end_);
    cudaEventDestroy(begin_);
  }
  Tuner(const Tuner&) = delete;
  Tuner& operator=(const Tuner&) = delete;

  Plan tune() {
    const int screening = launches_of(200, 1, 4), finals = launches_of(2000, 2, 12);
    struct Timed {
      std::optional<cublasLtMatmulAlgo_t> algorithm;
      int index;
      float us;
    };
    std::vector<Timed> timed;
    const auto algorithms = all_candidates();
    for (size_t i = 0; i < algorithms.size(); ++i)
      if (const auto us = time(algorithms[i], screening)) timed.push_back({algorithms[i], int(i), *us});
    if (gemm_ex_can(args_))
      if (const auto us = time(std::nullopt, screening)) timed.push_back({std::nullopt, -1, *us});
    check(!timed.empty(), "cuBLAS has no algorithm for {}×{} fp16 with {} tokens", args_.m, args_.k, args_.n);
    const auto faster = [](const Timed& a, const Timed& b) { return a.us < b.us; };
    std::sort(timed.begin(), timed.end(), faster);
    const int candidates = int(timed.size());
    if (timed.size() > kFinalists) timed.resize(kFinalists);
    for (Timed& t : timed) {
      std::array<float, 3> runs;
      for (float& us : runs) us = time(t.algorithm, finals).value_or(t.us);
      std::sort(runs.begin(), runs.end());
      t.us = runs[1];
    }
    const Timed& best = *std::min_element(timed.begin(), timed.end(), faster);
    Plan plan;
    plan.algorithm = best.algorithm;
    plan.choice.algorithm =
        best.algorithm ? fmt::format("cublasLt #{} of {}", best.index, algorithms.size()) : "cublasGemmEx";
    plan.choice.us = best.us;
    plan.choice.candidates = candidates;
    plan.n = args_.n;
    return plan;
  }

 private:
  /// Launches that together take about `us`: products of many tokens are long enough to be timed one by one.
  int launches_of(double us, int least, int most) const {
    constexpr double kFlopsPerUs = 5e8;
    const double each = 2 * double(args_.m) * double(args_.k) * double(args_.n) / kFlopsPerUs;
    return int(std::clamp(us / each, double(least), double(most)));
  }
  /// cuBLASLt's heuristic offers about eight algorithms a shape. Those it offers for other token counts (not
  /// for far fewer) run too, and often faster: all that cuBLASLt accepts for this problem.
  std::vector<cublasLtMatmulAlgo_t> all_candidates() {
    auto algorithms = problem_.candidates(context_, alignment_of(args_), kHeuristicCandidates);
    for (const int n : {8, 16, 32, 64, 128, 256, 512, 1024, 2048}) {
      if (n == args_.n || n < args_.n / 8 || algorithms.size() >= kMaxCandidates) continue;
      for (const auto& other :
           LtProblem(args_, n).candidates(context_, alignment_of(args_), kHeuristicCandidates)) {
        const auto same = [&](const cublasLtMatmulAlgo_t& a) {
          return std::memcmp(&a, &other, sizeof a) == 0;
        };
        if (std::none_of(algorithms.begin(), algorithms.end(), same) && problem_.accepts(context_, other))
          algorithms.push_back(other);
      }
    }
    return algorithms;
  }
  /// Microseconds a launch, or nothing where the algorithm does not run.
  std::optional<float> time(const std::optional<cublasLtMatmulAlgo_t>& algorithm, int launches) {
    if (!launch(algorithm)) return std::nullopt;
    SPINFER_CUDA_CHECK(cudaEventRecord(begin_, context_.stream()));
    for (int i = 0; i < launches; ++i) launch(algorithm);
    SPINFER_CUDA_CHECK(cudaEventRecord(end_, context_.stream()));
    SPINFER_CUDA_CHECK(cudaEventSynchronize(end_));
    float ms = 0;
    SPINFER_CUDA_CHECK(cudaEventElapsedTime(&ms, begin_, end_));
    return ms * 1000 / float(launches);
  }
  bool launch(const std::optional<cublasLtMatmulAlgo_t>& algorithm) {
    const Half* w = weights_[next_++ % weights_.size()];
    const cublasStatus_t status = algorithm ? problem_.run(context_, args_, w, y_.get(), y_.get(), *algorithm)
                                            : run_gemm_ex(context_, args_, args_.n, w, y_.get());
    return status == CUBLAS_STATUS_SUCCESS;
  }

  Context& context_;
  const DenseArgs& args_;
  LtProblem problem_;
  std::vector<const Half*> weights_;
  std::vector<std::shared_ptr<void>> copies_;
  std::shared_ptr<void> y_;
  cudaEvent_t begin_ = nullptr, end_ = nullptr;
  size_t next_ = 0;
};

}  // namespace

struct DensePlans::Cache {
  std::map<Key, Plan> plans;
};
DensePlans::DensePlans() : cache_(std::make_unique<Cache>()) {}
DensePlans::~DensePlans() = default;

size_t dense_scratch_bytes(int64_t m, int n) {
  return size_t(std::min(n, kSlice)) * size_t(m) * sizeof(float);
}

size_t dense_scratch_needed(const DenseArgs& args) {
  return needs_own_epilogue(args) ? dense_scratch_bytes(args.m, args.n) : 0;
}

namespace {

/// The plan for `a`, timed now if it is new; null where it is not to be tuned, and during capture of a
/// problem never seen.
const Plan* plan_of(Context& context, const DenseArgs& a) {
  if (!a.tuned) return nullptr;
  auto& plans = context.dense_plans().cache().plans;
  const Key key = key_of(a);
  if (const auto found = plans.find(key); found != plans.end()) return &found->second;
  if (context.capturing()) return nullptr;
  return &plans.emplace(key, Tuner(context, a).tune()).first->second;
}

/// The multiplication with what cuBLASLt can fuse.
void multiply(Context& context, const DenseArgs& a) {
  const Plan* plan = plan_of(context, a);
  if (plan && !plan->algorithm) {
    SPINFER_CUDA_CHECK(run_gemm_ex(context, a, a.n, a.w, a.y));
    return;
  }
  const LtProblem problem(a, a.n);
  const void* c = a.residual ? static_cast<const void*>(a.residual) : a.y;
  // An algorithm tuned for a bucket's other n may not fit this n: then the heuristic's first does.
  if (plan && (plan->n == a.n || problem.accepts(context, *plan->algorithm))) {
    SPINFER_CUDA_CHECK(problem.run(context, a, a.w, c, a.y, *plan->algorithm));
    return;
  }
  const auto algorithms = problem.candidates(context, alignment_of(a), 1);
  check(!algorithms.empty(), "cuBLASLt has no algorithm for {}×{} fp16 with {} tokens", a.m, a.k, a.n);
  SPINFER_CUDA_CHECK(problem.run(context, a, a.w, c, a.y, algorithms[0]));
}

/// Multiplies into the workspace, a slice of tokens at a time, and finishes with our kernel (the residual may
/// be y).
void multiply_then_finish(Context& context, const DenseArgs& a) {
  const int slice = std::min(a.n, kSlice);
  void* scratch = a.scratch ? a.scratch : context.workspace(dense_scratch_bytes(a.m, a.n));
  for (int begin = 0; begin < a.n; begin += slice) {
    DenseArgs part = a;
    part.n = std::min(slice, a.n - begin);
    part.x = a.x + int64_t(begin) * a.k;
    part.y = scratch;
    part.fp32_out = true;
    part.bias = nullptr;
    part.residual = nullptr;
    part.act = Activation::none;
    multiply(context, part);
    const int64_t offset = int64_t(begin) * a.m;
    finish_dense(context.stream(), static_cast<const float*>(scratch), part.n, a.m, a.bias, a.act,
                 a.residual ? a.residual + offset : nullptr, static_cast<Half*>(a.y) + offset);
  }
}

void check_args(const DenseArgs& a) {
  check(a.m > 0 && a.m <= INT32_MAX && a.k > 0 && a.k <= INT32_MAX,
        "dense linear {}×{}: sizes must be 1 … {}", a.m, a.k, INT32_MAX);
  check(!a.fp32_out || (!a.residual && a.act == Activation::none),
        "dense linear with fp32 output takes neither residual nor activation");
}

}  // namespace

void dense_linear(Context& context, const DenseArgs& args) {
  if (args.n == 0) return;
  check_args(args);
  context.activate();
  if (needs_own_epilogue(args)) {
    multiply_then_finish(context, args);
  } else {
    multiply(context, args);
  }
}

DenseChoice dense_choice(Context& context, const DenseArgs& args) {
  check_args(args);
  context.activate();
  DenseArgs a = args;
  if (needs_own_epilogue(a)) {
    a.fp32_out = true;
    a.bias = a.residual = nullptr;
    a.act = Activation::none;
  }
  const Plan* plan = plan_of(context, a);
  return plan ? plan->choice : DenseChoice{"cublasLt first heuristic", 0, 0};
}

}  // namespace spinfer::cuda
