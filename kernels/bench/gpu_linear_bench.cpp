#include "kernels/gpu_linear_bench.h"

#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "kernels/check.h"

namespace spinfer {

std::vector<GpuBenchShape> fused_model_shapes() {
  return {{12288, 4096},   // LLaMA-2-7B QKV
          {22016, 4096},   // LLaMA-2-7B gate+up
          {15360, 5120},   // OPT-13B, LLaMA-2-13B QKV
          {27648, 5120},   // LLaMA-2-13B gate+up
          {6144, 4096},    // LLaMA-3-8B QKV
          {28672, 4096},   // LLaMA-3-8B gate+up
          {10240, 8192},   // LLaMA-2/3-70B QKV
          {57344, 8192},   // LLaMA-2/3-70B gate+up
          {4608, 3584},    // Qwen2-7B QKV
          {37888, 3584},   // Qwen2-7B gate+up
          {20480, 5120},   // OPT-13B fc1
          {5120, 20480}};  // OPT-13B fc2
}

std::vector<GpuBenchShape> large_shapes() {
  return {{20480, 5120}, {5120, 20480},  {28672, 7168}, {7168, 28672}, {28672, 8192},
          {8192, 28672}, {12288, 12288}, {13824, 5120}, {22016, 4096}};
}

std::string to_json(const GpuBenchReport& report, bool rows_only) {
  nlohmann::ordered_json rows = nlohmann::ordered_json::array();
  for (const GpuBenchRow& r : report.rows)
    rows.push_back({{"m", r.m},
                    {"k", r.k},
                    {"n", r.n},
                    {"sparsity", r.sparsity},
                    {"us", r.us},
                    {"dense_us", r.dense_us},
                    {"speedup", r.speedup},
                    {"gbps", r.gbps},
                    {"floor_pct", r.floor_pct},
                    {"rel_error", r.rel_error},
                    {"kernel", r.kernel},
                    {"packed_bytes", r.packed_bytes},
                    {"device_bytes", r.device_bytes},
                    {"prepare_gbps", r.prepare_gbps},
                    {"dense_algorithm", r.dense_algorithm},
                    {"samples_us", r.samples_us},
                    {"dense_samples_us", r.dense_samples_us}});
  if (rows_only) return rows.dump();
  const nlohmann::ordered_json document = {
      {"gpu", report.gpu}, {"driver", report.driver}, {"read_gbps", report.read_gbps}, {"rows", rows}};
  return document.dump();
}

std::string to_csv(const GpuBenchReport& report) {
  std::string csv = "m,k,n,sparsity,kernel,us,dense_us,speedup,gbps,floor_pct,rel_error\n";
  for (const GpuBenchRow& r : report.rows)
    csv += fmt::format("{},{},{},{},{},{:.3f},{:.3f},{:.4f},{:.1f},{:.1f},{:.2e}\n", r.m, r.k, r.n,
                       r.sparsity, r.kernel, r.us, r.dense_us, r.speedup, r.gbps, r.floor_pct, r.rel_error);
  return csv;
}

std::string to_table(const GpuBenchReport& report) {
  std::string table = fmt::format(
      "{}, {}, {:.0f} GB/s read\n{:>14} {:>5} {:>6} {:<14} {:>10} {:>10} {:>8} {:>8} {:>6} {:>9}\n",
      report.gpu, report.driver, report.read_gbps, "MxK", "N", "zeros", "kernel", "us", "cuBLAS us",
      "speedup", "GB/s", "floor", "error");
  for (const GpuBenchRow& r : report.rows)
    table += fmt::format(
        "{:>14} {:>5} {:>5.0f}% {:<14} {:>10.2f} {:>10.2f} {:>7.2f}x {:>8.0f} {:>5.0f}% {:>9.1e}\n",
        fmt::format("{}x{}", r.m, r.k), r.n, r.sparsity * 100, r.kernel, r.us, r.dense_us, r.speedup, r.gbps,
        r.floor_pct, r.rel_error);
  return table;
}

}  // namespace spinfer
