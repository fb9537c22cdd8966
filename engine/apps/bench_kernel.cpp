// `spinfer bench kernel`: the sparse linear against the dense one on cold weights.
#include <fmt/format.h>

#include <charconv>
#include <memory>
#include <nlohmann/json.hpp>

#include "engine/apps/command.h"
#include "engine/apps/interrupt.h"
#include "engine/apps/options.h"
#include "engine/apps/output.h"
#include "engine/apps/progress.h"
#include "engine/apps/report.h"
#include "kernels/bench/linear_bench.h"
#include "kernels/check.h"
#include "kernels/gpu_linear_bench.h"

namespace spinfer {
namespace {

struct KernelFlags {
  CommonFlags common;
  std::string shapes = "paper";
  std::vector<int> tokens = {8, 16, 32};
  std::vector<double> sparsities = {0.5, 0.6};
  int64_t cold_bytes = 0;
  std::string csv;
  std::vector<std::string> kernels = {"auto"};  ///< GPU only
};

std::vector<LinearShape> parse_shapes(const std::string& text) {
  if (text == "paper") return {paper_shapes().begin(), paper_shapes().end()};
  std::vector<LinearShape> shapes;
  for (const std::string_view item : split(text, ',')) {
    LinearShape shape{};
    const char* last = item.data() + item.size();
    const auto m = std::from_chars(item.data(), last, shape.m);
    const bool has_x = m.ec == std::errc() && m.ptr != last && *m.ptr == 'x';
    const auto k = has_x ? std::from_chars(m.ptr + 1, last, shape.k) : m;
    if (!has_x || k.ec != std::errc() || k.ptr != last || shape.m < 1 || shape.k < 1 || shape.m > 1 << 20 ||
        shape.k > 1 << 20) {
      throw UsageError(fmt::format("--shapes: '{}' is not MxK with sizes 1..1048576, nor 'paper'", item));
    }
    shapes.push_back(shape);
  }
  return shapes;
}

/// The same results three times over.
struct BenchResult {
  nlohmann::json document;
  std::string csv;
  std::string table;
};

BenchResult result_of(const std::vector<LinearBenchRow>& rows) {
  BenchResult result;
  result.document = nlohmann::json::array();
  result.csv = "m,k,n,sparsity,us,dense_us,speedup,gbps,floor_pct,rel_error\n";
  result.table = fmt::format("{:>14} {:>5} {:>8} {:>10} {:>10} {:>8} {:>8} {:>7} {:>9}\n", "MxK", "N",
                             "zeros", "sparse us", "dense us", "speedup", "GB/s", "floor", "error");
  for (const LinearBenchRow& r : rows) {
    result.document.push_back({{"m", r.m},
                               {"k", r.k},
                               {"n", r.n},
                               {"sparsity", r.sparsity},
                               {"us", r.us},
                               {"dense_us", r.dense_us},
                               {"speedup", r.speedup},
                               {"gbps", r.gbps},
                               {"dense_gbps", r.dense_gbps},
                               {"read_gbps", r.read_gbps},
                               {"floor_pct", r.floor_pct},
                               {"rel_error", r.rel_error},
                               {"us_batches", r.us_batches},
                               {"dense_us_batches", r.dense_us_batches},
                               {"read_gbps_batches", r.read_gbps_batches}});
    result.csv += fmt::format("{},{},{},{},{:.3f},{:.3f},{:.4f},{:.2f},{:.2f},{:.3e}\n", r.m, r.k, r.n,
                              r.sparsity, r.us, r.dense_us, r.speedup, r.gbps, r.floor_pct, r.rel_error);
    result.table +=
        fmt::format("{:>14} {:>5} {:>7.0f}% {:>10.1f} {:>10.1f} {:>7.2f}x {:>8.1f} {:>7} {:>9.1e}\n",
                    fmt::format("{}x{}", r.m, r.k), r.n, r.sparsity * 100, r.us, r.dense_us, r.speedup,
                    r.gbps, number_or_na(r.floor_pct, 0, "%"), r.rel_error);
  }
  return result;
}

BenchResult bench_cpu(const KernelFlags& flags, const std::vector<LinearShape>& shapes) {
  if (flags.kernels != std::vector<std::string>{"auto"})
    throw UsageError("--kernel: only with --device cuda; the CPU has one kernel");
  LinearBenchOptions options;
  options.shapes = shapes;
  options.tokens = flags.tokens;
  options.sparsities = flags.sparsities;
  options.cold_bytes = flags.cold_bytes;
  options.seed = flags.common.seed.value_or(options.seed);
  ProgressBar bar("bench kernel", ProgressUnit::items);
  int64_t done = 0;
  const auto total = int64_t(shapes.size() * flags.sparsities.size() * (flags.tokens.size() + 1));
  options.progress = [&](const std::string&) {
    stop_if_interrupted();
    bar.update(done++, total);
  };
  return result_of(bench_linear(cpu_backend(), {.threads = flags.common.threads}, options));
}

/// The GPU measures with graphs and device memory of its own, and against cuBLAS.
BenchResult bench_gpu(const KernelFlags& flags, const std::vector<LinearShape>& shapes) {
  GpuBenchOptions options;
  for (const LinearShape& shape : shapes) options.shapes.push_back({shape.m, shape.k});
  options.n = flags.tokens;
  options.sparsities = flags.sparsities;
  options.kernels = flags.kernels;
  options.seed = flags.common.seed.value_or(options.seed);
  ProgressBar bar("bench kernel", ProgressUnit::items);
  int64_t done = 0;
  const auto total =
      int64_t(shapes.size() * flags.sparsities.size() * flags.tokens.size() * flags.kernels.size());
  const GpuBenchReport report = run_gpu_linear_bench(options, [&](const GpuBenchRow&) {
    stop_if_interrupted();
    bar.update(++done, total);
  });
  return {nlohmann::json::parse(to_json(report, true)), to_csv(report), to_table(report)};
}

void run_kernel_bench(const KernelFlags& flags) {
  const auto shapes = parse_shapes(flags.shapes);
  flags.common.check_one_rank("bench kernel");
  flags.common.apply_log_level();
  const Backend& backend = select_backend(flags.common.device);
  CsvFile csv(flags.csv);
  const BenchResult result = backend.host ? bench_cpu(flags, shapes) : bench_gpu(flags, shapes);
  if (csv.wanted()) csv.write(result.csv);
  if (flags.common.json) return print_json(result.document);
  print_out(result.table);
}

}  // namespace

void add_bench_kernel(CLI::App& bench) {
  auto flags = std::make_shared<KernelFlags>();
  CLI::App* command = bench.add_subcommand("kernel", "the sparse linear against the dense one, weights cold");
  flags->common.add_to(*command, CommonFlags::Model::none, {.device = true, .threads = true, .seed = true});
  command->add_option("--shapes", flags->shapes, "paper, or MxK,MxK,… (out features x in features)")
      ->capture_default_str();
  add_list(*command, "-N,--tokens", flags->tokens, "tokens: 8,16,32", whole_number_in(1, 1 << 16))
      ->capture_default_str();
  add_list(*command, "--sparsity", flags->sparsities, "shares of zeros: 0.5,0.6", number_in(0, 1, "0..1"))
      ->capture_default_str();
  command
      ->add_option("--cold-bytes", flags->cold_bytes,
                   "CPU: bytes of weights to rotate through; 0 = four times the last-level cache")
      ->check(whole_number_in(0, int64_t{1} << 40));
  add_list(*command, "--kernel", flags->kernels,
           "on a GPU: auto, smbd (the published algorithm), stream, scratch, fused, cusparse; several give "
           "rows each",
           CLI::IsMember({"auto", "smbd", "stream", "scratch", "fused", "cusparse"}))
      ->capture_default_str();
  command->add_option("--csv", flags->csv, "also write the rows to this file")->check(not_empty());
  command->callback([flags] { run_kernel_bench(*flags); });
}

}  // namespace spinfer
