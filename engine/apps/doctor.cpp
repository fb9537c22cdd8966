// `spinfer doctor`: what this machine offers, and whether each backend computes what it should.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <memory>
#include <nlohmann/json.hpp>

#include "engine/apps/command.h"
#include "engine/apps/options.h"
#include "engine/apps/output.h"
#include "engine/apps/self_test.h"
#include "engine/human_bytes.h"
#include "kernels/bench/collective_bench.h"
#include "kernels/check.h"
#include "kernels/device.h"

namespace spinfer {
namespace {

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

constexpr int kMostLinkedRanks = 8;  // the GPUs of one host

/// The links between all GPUs, as the ranks of a model use them; empty where there is one device.
nlohmann::json all_reduce(const Backend& backend, bool& healthy) {
  nlohmann::json rows = nlohmann::json::array();
  const int ranks = std::min(backend.device_count(), kMostLinkedRanks);
  if (ranks < 2) return rows;
  for (const AllReduceRow& row :
       bench_all_reduce(backend, ranks, 1, {8 << 10, 64 << 10, 256 << 10, 1 << 20, 64 << 20})) {
    healthy &= row.correct;
    rows.push_back({{"ranks", ranks},
                    {"bytes", row.bytes},
                    {"us", row.us},
                    {"bus_gbps", row.bus_gbps},
                    {"ok", row.correct}});
  }
  return rows;
}

nlohmann::json inspect_backend(const Backend& backend, int threads, bool& healthy) {
  nlohmann::json devices = nlohmann::json::array();
  for (int ordinal = 0; ordinal < backend.device_count(); ++ordinal) {
    Device device(backend, {.ordinal = ordinal, .threads = threads});
    const DeviceInfo info = device.info();
    nlohmann::json tests = nlohmann::json::array();
    for (const SelfTest& test : self_test(device)) {
      healthy &= test.ok();
      tests.push_back({{"op", test.op}, {"rel_error", test.rel_error}, {"ok", test.ok()}});
    }
    devices.push_back({{"name", info.name},
                       {"total_bytes", info.total_bytes},
                       {"free_bytes", info.free_bytes},
                       {"threads", info.threads},
                       {"software", backend.software(device.context())},
                       {"peers", info.peers},
                       {"self_tests", tests}});
  }
  return {{"name", backend.name}, {"devices", devices}, {"all_reduce", all_reduce(backend, healthy)}};
}

void print_text(const nlohmann::json& document) {
  const auto& cpu = document["cpu"];
  print_out(fmt::format("machine  {}, {} threads, {} of memory, {}\n", cpu["model"].get<std::string>(),
                        cpu["threads"].get<int>(), human_bytes(cpu["memory_bytes"]),
                        fmt::join(cpu["features"].get<std::vector<std::string>>(), " ")));
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
      if (const auto& software = device["software"].get_ref<const std::string&>(); !software.empty())
        print_out(fmt::format("           {}; maps the memory of {} other GPUs\n", software,
                              device["peers"].size()));
    }
    for (const auto& row : backend["all_reduce"]) {
      print_out(fmt::format("           all-reduce of {:>9} on {} GPUs {} ({:.1f} us, {:.1f} GB/s)\n",
                            human_bytes(row["bytes"]), row["ranks"].get<int>(),
                            row["ok"].get<bool>() ? "ok" : "WRONG", row["us"].get<double>(),
                            row["bus_gbps"].get<double>()));
    }
  }
  if (!document["cuda_built"].get<bool>())
    print_out(
        "cuda     built without CUDA; to include it: cmake --preset release && cmake --build --preset "
        "release\n");
}

void run_doctor(const CommonFlags& flags) {
  Device cpu(cpu_backend(), {.ordinal = 0, .threads = flags.threads});
  nlohmann::json document{{"cpu",
                           {{"model", cpu.info().name},
                            {"features", cpu_features()},
                            {"threads", cpu.info().threads},
                            {"memory_bytes", cpu.info().total_bytes}}},
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
  flags->add_to(*command, CommonFlags::Model::none, {.threads = true});
  command->callback([flags] { run_doctor(*flags); });
}

}  // namespace spinfer
