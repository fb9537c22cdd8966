// The kernel benchmark as a program of its own, for scripts/gpu_check.sh: needs no tokenizer, model or server
// library.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <fstream>

#include "kernels/bench/linear_bench.h"
#include "kernels/check.h"
#include "kernels/gpu_linear_bench.h"

namespace {

using namespace spinfer;

std::vector<GpuBenchShape> parse_shapes(const std::string& text) {
  std::vector<GpuBenchShape> shapes;
  if (text == "paper") {
    for (const LinearShape& shape : paper_shapes()) shapes.push_back({shape.m, shape.k});
    return shapes;
  }
  if (text == "fused") return fused_model_shapes();
  if (text == "large") return large_shapes();
  for (const std::string& part : CLI::detail::split(text, ',')) {
    GpuBenchShape shape;
    char rest = 0;
    if (std::sscanf(part.c_str(), "%ldx%ld%c", &shape.m, &shape.k, &rest) != 2 || shape.m < 1 || shape.k < 1)
      throw UsageError(
          fmt::format("--shapes {}: must be paper, fused, large or a list like 4096x4096,11008x4096", part));
    shapes.push_back(shape);
  }
  return shapes;
}

void write_file(const std::string& path, const std::string& text) {
  std::ofstream file(path);
  file << text << '\n';
  file.close();
  check(bool(file), "{}: cannot be written", path);
}

void print_row(const GpuBenchRow& r) {
  fmt::print(
      "{:>6}×{:<6} n={:<5} {:>3.0f}% {:<13} {:9.2f} us  dense {:9.2f} us  {:5.2f}×  {:7.1f} GB/s  {:5.1f}% "
      "of floor  err {:.1e}\n",
      r.m, r.k, r.n, r.sparsity * 100, r.kernel, r.us, r.dense_us, r.speedup, r.gbps, r.floor_pct,
      r.rel_error);
  std::fflush(stdout);
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app("GPU kernel benchmark: sparse linear against the better cuBLAS");
  GpuBenchOptions options;
  options.n = {8, 16, 32};
  options.sparsities = {0.5, 0.6, 0.7};
  std::string shapes = "paper", csv, json;
  app.add_option("--shapes", shapes, "paper, fused, large, or MxK,…");
  app.add_option("-N", options.n, "tokens")->delimiter(',');
  app.add_option("--sparsity", options.sparsities, "0 … 1")->delimiter(',');
  app.add_option("--kernel", options.kernels, "auto, smbd, stream, scratch, fused, cusparse")->delimiter(',');
  app.add_option("--batches", options.batches)->check(CLI::Range(5, 1000));
  app.add_option("--launches", options.launches)->check(CLI::Range(20, 10000));
  app.add_option("--csv", csv, "file");
  app.add_option("--json", json, "file");
  CLI11_PARSE(app, argc, argv);
  try {
    options.shapes = parse_shapes(shapes);
    const GpuBenchReport report = run_gpu_linear_bench(options, print_row);
    fmt::print("{}, {}, {:.0f} GB/s read\n", report.gpu, report.driver, report.read_gbps);
    if (!csv.empty()) write_file(csv, to_csv(report));
    if (!json.empty()) write_file(json, to_json(report, false));
  } catch (const std::exception& e) {
    fmt::print(stderr, "gpu_linear_bench: {}\n", e.what());
    return 1;
  }
}
