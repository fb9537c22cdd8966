// `spinfer doctor`: what this machine offers, and whether each backend computes what it should.
#include <fmt/format.h>

#include <cmath>
#include <fstream>
#include <memory>
#include <nlohmann/json.hpp>
#include <random>

#include "engine/apps/command.h"
#include "engine/apps/options.h"
#include "engine/apps/output.h"
#include "engine/apps/report.h"
#include "kernels/check.h"
#include "kernels/device.h"
#include "kernels/thread_pool.h"

namespace spinfer {
namespace {

/// Rounding a result to fp16 costs 2^-11 at most, relative to it.
constexpr double kTolerance = 1e-3;

std::string cpu_model() {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);) {
    if (line.starts_with("model name")) return line.substr(line.find(':') + 2);
  }
  return "unknown";
}

std::vector<std::string> cpu_features() {
  std::vector<std::string> features;
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx2")) features.emplace_back("avx2");
  if (__builtin_cpu_supports("f16c")) features.emplace_back("f16c");
  if (__builtin_cpu_supports("fma")) features.emplace_back("fma");
  if (__builtin_cpu_supports("avx512f")) features.emplace_back("avx512f");
  if (__builtin_cpu_supports("avx512bw")) features.emplace_back("avx512bw");
  if (__builtin_cpu_supports("avx512vbmi2")) features.emplace_back("avx512vbmi2");
#endif
  return features;
}

struct SelfTest {
  std::string op;
  double rel_error = 0;
  bool ok() const { return rel_error < kTolerance; }  // NaN is not
};

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
  const LinearWeight weight = device.ops().prepare_linear(device.context(), matrix, nullptr);
  DeviceArray<Half> device_x(device, int64_t(x.size()), MemoryUse::workspace);
  DeviceArray<Half> device_y(device, int64_t(want.size()), MemoryUse::workspace);
  device_x.upload(x.data(), device_x.size());
  device.ops().linear(device.context(),
                      {.w = weight.view, .x = device_x.data(), .n = kN, .y = device_y.data()});
  return {packed ? "linear, TCA-BME" : "linear, dense",
          relative_error(device_y.download(device_y.size()), want)};
}

nlohmann::json inspect_backend(const Backend& backend, int threads, bool& healthy) {
  nlohmann::json devices = nlohmann::json::array();
  for (int ordinal = 0; ordinal < backend.device_count(); ++ordinal) {
    Device device(backend, {.ordinal = ordinal, .threads = threads});
    const DeviceInfo info = device.info();
    nlohmann::json tests = nlohmann::json::array();
    for (bool packed : {false, true}) {
      const SelfTest test = test_linear(device, packed);
      healthy &= test.ok();
      tests.push_back({{"op", test.op}, {"rel_error", test.rel_error}, {"ok", test.ok()}});
    }
    devices.push_back({{"name", info.name},
                       {"total_bytes", info.total_bytes},
                       {"free_bytes", info.free_bytes},
                       {"threads", info.threads},
                       {"self_tests", tests}});
  }
  return {{"name", backend.name}, {"devices", devices}};
}

void print_text(const nlohmann::json& document) {
  print_out(fmt::format("CPU      {} ({})\n", document["cpu"]["model"].get<std::string>(),
                        document["cpu"]["features"].dump()));
  for (const auto& backend : document["backends"]) {
    if (backend["devices"].empty())
      print_out(fmt::format("{:<8} no device\n", backend["name"].get<std::string>()));
    for (const auto& device : backend["devices"]) {
      print_out(fmt::format("{:<8} {}: {} of {} free\n", backend["name"].get<std::string>(),
                            device["name"].get<std::string>(), human_bytes(device["free_bytes"]),
                            human_bytes(device["total_bytes"])));
      for (const auto& test : device["self_tests"]) {
        print_out(fmt::format("           {:<18} {} (relative error {:.1e})\n", test["op"].get<std::string>(),
                              test["ok"].get<bool>() ? "ok" : "WRONG", test["rel_error"].get<double>()));
      }
    }
  }
  if (!document["cuda_built"].get<bool>())
    print_out("cuda     not built in (no CUDA compiler when spinfer was built)\n");
}

void run_doctor(const CommonFlags& flags) {
  nlohmann::json document{{"cpu", {{"model", cpu_model()}, {"features", cpu_features()}}},
                          {"backends", nlohmann::json::array()},
                          {"cuda_built", cuda_backend() != nullptr}};
  bool healthy = true;
  document["backends"].push_back(inspect_backend(cpu_backend(), flags.threads, healthy));
  if (cuda_backend())
    document["backends"].push_back(inspect_backend(*cuda_backend(), flags.threads, healthy));
  document["ok"] = healthy;
  if (flags.json) {
    print_json(document);
  } else {
    print_text(document);
  }
  check(healthy, "doctor: a self-test failed, see above");
}

}  // namespace

void add_doctor(CLI::App& app) {
  auto flags = std::make_shared<CommonFlags>();
  CLI::App* command = app.add_subcommand("doctor", "devices, drivers and a self-test of the kernels");
  flags->add_to(*command, CommonFlags::Model::optional);
  command->callback([flags] { run_doctor(*flags); });
}

}  // namespace spinfer
