// gpu_collective_bench: the all-reduce of a decode step inside captured graphs, ours beside ncclAllReduce, on
// all GPUs of this host. Prints one JSON document: µs a call and bus bandwidth for 8 KB … 64 MB of fp16.
#include <cuda_runtime_api.h>
#include <fmt/format.h>

#include <algorithm>
#include <barrier>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <thread>
#include <vector>

#include "kernels/backend.h"
#include "kernels/check.h"
#include "kernels/cuda/collective.h"
#include "kernels/cuda/context.h"
#include "kernels/cuda/cuda_check.h"
#include "kernels/cuda/op_state.h"
#include "kernels/device.h"

namespace spinfer::cuda {
namespace {

constexpr int kBatches = 7;

/// Runs body(rank) on a thread each; an exception ends the program, since the other ranks would wait for
/// ever.
template <class Body>
void on_all(int world, const Body& body) {
  std::vector<std::thread> threads;
  for (int rank = 0; rank < world; ++rank) {
    threads.emplace_back([&body, rank] {
      try {
        body(rank);
      } catch (const std::exception& error) {
        fmt::print(stderr, "gpu_collective_bench: rank {}: {}\n", rank, error.what());
        std::_Exit(1);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
}

class Bench {
 public:
  explicit Bench(int world) {
    std::vector<DeviceContext*> contexts;
    for (int rank = 0; rank < world; ++rank) {
      devices_.push_back(std::make_unique<Device>(*cuda_backend(), DeviceOptions{.ordinal = rank}));
      contexts.push_back(&devices_.back()->context());
    }
    connect(contexts);
  }
  bool peers() { return context(0).op_state().group->peers() != nullptr; }

  /// µs an all-reduce on rank 0, batch by batch.
  std::vector<double> measure(int64_t bytes, bool nccl) {
    return measure(bytes, bytes <= 4 << 20 ? 64 : 8,
                   [&](int rank, Half* x) { call(rank, x, bytes / 2, nccl); });
  }

  /// The same of an all-reduce with the residual addition and norm of [n][d] that follow it, in one op or
  /// two.
  std::vector<double> measure_norm(int n, int d, bool together) {
    const int64_t size = int64_t{n} * d;
    return measure(3 * size * int64_t{sizeof(Half)}, 64, [&](int rank, Half* x) {
      const Backend& ops = *cuda_backend();
      if (!together) ops.all_reduce(opaque(context(rank)), x, size);
      ops.add_norm(opaque(context(rank)), {.h = x + size,
                                           .delta = x,
                                           .kind = NormKind::rms,
                                           .gain = nullptr,
                                           .bias = nullptr,
                                           .eps = 1e-5f,
                                           .n = n,
                                           .d = d,
                                           .out = x + 2 * size,
                                           .sum_delta = together});
    });
  }

 private:
  /// Of `calls` calls of op(rank, memory of `bytes`) in a graph.
  template <class Op>
  std::vector<double> measure(int64_t bytes, int calls, const Op& op) {
    const int world = int(devices_.size());
    std::barrier meet(world);
    std::vector<double> samples;
    on_all(world, [&](int rank) {
      Context& mine = context(rank);
      mine.activate();
      const auto memory = mine.allocate_shared(size_t(bytes));
      auto* x = static_cast<Half*>(memory.get());
      SPINFER_CUDA_CHECK(cudaMemsetAsync(x, 0, size_t(bytes), mine.stream()));
      op(rank, x);  // sizes the workspace, connects NCCL's channels
      mine.op_state().drain(mine);
      meet.arrive_and_wait();
      cudaGraph_t graph = nullptr;
      cudaGraphExec_t exec = nullptr;
      SPINFER_CUDA_CHECK(cudaStreamBeginCapture(mine.stream(), cudaStreamCaptureModeThreadLocal));
      for (int i = 0; i < calls; ++i) op(rank, x);
      SPINFER_CUDA_CHECK(cudaStreamEndCapture(mine.stream(), &graph));
      SPINFER_CUDA_CHECK(cudaGraphInstantiate(&exec, graph, 0));
      cudaEvent_t begin, end;
      SPINFER_CUDA_CHECK(cudaEventCreate(&begin));
      SPINFER_CUDA_CHECK(cudaEventCreate(&end));
      for (int batch = 0; batch <= kBatches; ++batch) {  // the first warms up
        meet.arrive_and_wait();
        SPINFER_CUDA_CHECK(cudaGraphLaunch(exec, mine.stream()));  // takes up the start's unevenness
        SPINFER_CUDA_CHECK(cudaEventRecord(begin, mine.stream()));
        SPINFER_CUDA_CHECK(cudaGraphLaunch(exec, mine.stream()));
        SPINFER_CUDA_CHECK(cudaEventRecord(end, mine.stream()));
        mine.op_state().drain(mine);
        float ms = 0;
        SPINFER_CUDA_CHECK(cudaEventElapsedTime(&ms, begin, end));
        if (rank == 0 && batch > 0) samples.push_back(double(ms) * 1000 / calls);
      }
      SPINFER_CUDA_CHECK(cudaEventDestroy(begin));
      SPINFER_CUDA_CHECK(cudaEventDestroy(end));
      SPINFER_CUDA_CHECK(cudaGraphExecDestroy(exec));
      SPINFER_CUDA_CHECK(cudaGraphDestroy(graph));
    });
    return samples;
  }

  Context& context(int rank) { return context_of(devices_[size_t(rank)]->context()); }
  void call(int rank, Half* x, int64_t count, bool nccl) {
    Context& mine = context(rank);
    if (!nccl) return all_reduce(opaque(mine), x, count);
    mine.op_state().group->enqueue(rank, [&](const NcclLibrary& library, ncclComm_t comm) {
      return library.all_reduce(x, x, size_t(count), ncclHalf, ncclSum, comm, mine.stream());
    });
  }

  std::vector<std::unique_ptr<Device>> devices_;
};

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

nlohmann::json run() {
  check(cuda_backend() && device_count() >= 2, "gpu_collective_bench needs two GPUs");
  const int world = device_count();
  Bench bench(world);
  cudaDeviceProp properties{};
  int driver = 0, runtime = 0;
  SPINFER_CUDA_CHECK(cudaGetDeviceProperties(&properties, 0));
  SPINFER_CUDA_CHECK(cudaDriverGetVersion(&driver));
  SPINFER_CUDA_CHECK(cudaRuntimeGetVersion(&runtime));
  const char* commit = std::getenv("SPINFER_COMMIT");
  nlohmann::json rows = nlohmann::json::array();
  for (int64_t bytes = 8 << 10; bytes <= 64 << 20; bytes *= 2) {
    nlohmann::json row{{"bytes", bytes}};
    for (const bool nccl : {false, true}) {
      const std::vector<double> samples = bench.measure(bytes, nccl);
      const double us = median(samples), bus = 2.0 * (world - 1) / world * double(bytes) / us * 1e-3;
      const std::string name = nccl ? "nccl" : "ours";
      row[name] = {{"us", us}, {"bus_gbps", bus}, {"us_samples", samples}};
    }
    fmt::print(stderr, "{:>9} bytes  ours {:8.2f} us  nccl {:8.2f} us\n", bytes,
               row["ours"]["us"].get<double>(), row["nccl"]["us"].get<double>());
    rows.push_back(row);
  }
  nlohmann::json norms = nlohmann::json::array();
  for (const int n : {1, 8, 16, 32}) {
    constexpr int kWidth = 8192;
    const double two = median(bench.measure_norm(n, kWidth, false)),
                 one = median(bench.measure_norm(n, kWidth, true));
    norms.push_back({{"n", n}, {"d", kWidth}, {"two_ops_us", two}, {"one_op_us", one}});
    fmt::print(stderr, "{} x {}: all-reduce and add_norm {:.2f} us, in one op {:.2f} us\n", n, kWidth, two,
               one);
  }
  return {{"what", "all-reduce of fp16 inside captured graphs; bus_gbps = 2(world-1)/world * bytes / time"},
          {"gpu", properties.name},
          {"gpus", world},
          {"peer_memory", bench.peers()},
          {"driver", driver},
          {"cuda", runtime},
          {"commit", commit ? commit : ""},
          {"command", "gpu_collective_bench"},
          {"rows", rows},
          {"with_add_norm", norms}};
}

}  // namespace
}  // namespace spinfer::cuda

int main() {
  try {
    fmt::print("{}\n", spinfer::cuda::run().dump(1));
  } catch (const std::exception& error) {
    fmt::print(stderr, "gpu_collective_bench: {}\n", error.what());
    return 1;
  }
}
