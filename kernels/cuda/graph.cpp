#include "kernels/cuda/graph.h"

#include <algorithm>
#include <memory>

#include "kernels/check.h"
#include "kernels/cuda/context.h"
#include "kernels/cuda/cuda_check.h"

namespace spinfer::cuda {
namespace {

Graph& graph_of(DeviceGraph& opaque) {
  return reinterpret_cast<Graph&>(opaque);
}

/// What `body` queues on the context's stream.
cudaGraph_t captured(Context& context, const std::function<void()>& body) {
  cudaGraph_t graph = nullptr;
  SPINFER_CUDA_CHECK(cudaStreamBeginCapture(context.stream(), cudaStreamCaptureModeThreadLocal));
  try {
    body();
  } catch (...) {
    cudaStreamEndCapture(context.stream(), &graph);
    if (graph) cudaGraphDestroy(graph);
    cudaGetLastError();  // a capture that was broken off must not show up in the next check
    throw;
  }
  SPINFER_CUDA_CHECK(cudaStreamEndCapture(context.stream(), &graph));
  return graph;
}

}  // namespace

DeviceGraph* record(DeviceContext& opaque, const std::function<void()>& body) {
  Context& context = context_of(opaque);
  context.activate();
  const int64_t free_before = context.info().free_bytes;
  const cudaGraph_t nodes = captured(context, body);
  auto graph = std::make_unique<Graph>();
  graph->memory_version = context.memory_version();
  const cudaError_t status = cudaGraphInstantiate(&graph->exec, nodes, 0);
  cudaGraphDestroy(nodes);
  SPINFER_CUDA_CHECK(status);
  SPINFER_CUDA_CHECK(cudaGraphUpload(graph->exec, context.stream()));
  graph->bytes = std::max<int64_t>(0, free_before - context.info().free_bytes);
  context.account_graph(graph->bytes);
  return reinterpret_cast<DeviceGraph*>(graph.release());
}

bool replay(DeviceContext& opaque, DeviceGraph& opaque_graph) {
  Context& context = context_of(opaque);
  const Graph& graph = graph_of(opaque_graph);
  if (graph.memory_version != context.memory_version()) return false;
  context.activate();
  SPINFER_CUDA_CHECK(cudaGraphLaunch(graph.exec, context.stream()));
  return true;
}

void discard(DeviceContext& opaque, DeviceGraph* opaque_graph) noexcept {
  if (!opaque_graph) return;
  Context& context = context_of(opaque);
  const std::unique_ptr<Graph> graph(&graph_of(*opaque_graph));
  context.account_graph(-graph->bytes);
}

}  // namespace spinfer::cuda
