// Recorded work as CUDA graphs. Kernels that were queued as programmatic dependent launches stay so inside a
// graph.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <functional>

#include "kernels/backend.h"

namespace spinfer::cuda {

/// Behind a CUDA `DeviceGraph*`.
struct Graph {
  Graph() = default;
  ~Graph() {
    if (exec) cudaGraphExecDestroy(exec);  // the driver waits for launches under way
  }
  Graph(const Graph&) = delete;
  Graph& operator=(const Graph&) = delete;

  cudaGraphExec_t exec = nullptr;
  uint64_t memory_version = 0;  ///< Context::memory_version when it was recorded
  int64_t bytes = 0;            ///< what the driver took for it
};

DeviceGraph* record(DeviceContext& context, const std::function<void()>& body);
bool replay(DeviceContext& context, DeviceGraph& graph);
void discard(DeviceContext& context, DeviceGraph* graph) noexcept;

}  // namespace spinfer::cuda
