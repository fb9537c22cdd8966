// Timing launches as the engine runs them: captured into a graph that is replayed.
#pragma once

#include <cuda_runtime_api.h>

#include <algorithm>
#include <functional>
#include <vector>

#include "kernels/cuda/context.h"
#include "kernels/cuda/cuda_check.h"

namespace spinfer::cuda {

/// A captured graph of `launches` calls of `launch(i)`; `time` replays it.
class TimedGraph {
 public:
  TimedGraph(Context& context, int launches, const std::function<void(int i)>& launch)
      : context_(context), launches_(launches) {
    launch(0);  // tuning, workspace growth and module loading happen outside the capture
    SPINFER_CUDA_CHECK(cudaStreamSynchronize(context.stream()));
    SPINFER_CUDA_CHECK(cudaStreamBeginCapture(context.stream(), cudaStreamCaptureModeThreadLocal));
    for (int i = 0; i < launches; ++i) launch(i);
    cudaGraph_t graph = nullptr;
    SPINFER_CUDA_CHECK(cudaStreamEndCapture(context.stream(), &graph));
    SPINFER_CUDA_CHECK(cudaGraphInstantiate(&graph_, graph, 0));
    SPINFER_CUDA_CHECK(cudaGraphDestroy(graph));
    SPINFER_CUDA_CHECK(cudaEventCreate(&begin_));
    SPINFER_CUDA_CHECK(cudaEventCreate(&end_));
  }
  ~TimedGraph() {
    cudaEventDestroy(end_);
    cudaEventDestroy(begin_);
    cudaGraphExecDestroy(graph_);
  }
  TimedGraph(const TimedGraph&) = delete;
  TimedGraph& operator=(const TimedGraph&) = delete;

  /// Microseconds a launch of one replay.
  double time() {
    SPINFER_CUDA_CHECK(cudaEventRecord(begin_, context_.stream()));
    SPINFER_CUDA_CHECK(cudaGraphLaunch(graph_, context_.stream()));
    SPINFER_CUDA_CHECK(cudaEventRecord(end_, context_.stream()));
    SPINFER_CUDA_CHECK(cudaEventSynchronize(end_));
    float ms = 0;
    SPINFER_CUDA_CHECK(cudaEventElapsedTime(&ms, begin_, end_));
    return double(ms) * 1000 / launches_;
  }

 private:
  Context& context_;
  int launches_;
  cudaGraphExec_t graph_ = nullptr;
  cudaEvent_t begin_ = nullptr, end_ = nullptr;
};

}  // namespace spinfer::cuda
