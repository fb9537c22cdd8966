// A backend is one constant table of function references: a missing or wrongly typed op does not compile.
// kernels/cpu defines the table that specifies the results, kernels/cuda the fast one; both implement
// kernels/ops.h and kernels/pruning_ops.h.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/ops.h"
#include "kernels/pruning_ops.h"
#include "kernels/weights.h"

namespace spinfer {

/// One device with its stream, thread pool, library handles and scratch memory. Defined by each backend.
struct DeviceContext;
/// Queued work, recorded to be queued again as a whole. Defined by each backend.
struct DeviceGraph;

struct DeviceOptions {
  int ordinal = 0;             ///< which GPU; ignored on the CPU
  int threads = 0;             ///< CPU threads; 0 = all cores this process may use
  bool deterministic = false;  ///< results must not depend on what else is in the batch
};

struct DeviceInfo {
  std::string name;
  int64_t total_bytes = 0;    ///< device memory (CPU: RAM, or the control group's limit if lower)
  int64_t free_bytes = 0;     ///< available now
  int threads = 0;            ///< CPU threads; 0 on a GPU
  int64_t scratch_bytes = 0;  ///< held by the context itself: workspace of ops and libraries
  int64_t graph_bytes = 0;    ///< taken from the device by recorded graphs
  std::vector<int> peers{};   ///< other devices whose memory it can map
};

/// What ops are for: by this the time of a step is broken down.
enum class OpKind { linear, attention, norm, communication, sampling, other, count_ };

/// Marks that can be outstanding.
inline constexpr int kMarks = 8;

struct Backend {
  const char* name;  ///< "cpu", "cuda"
  bool host;         ///< its one device is this process's own threads and memory
  int most_vocab;    ///< the longest row of logits that can be sampled

  int (&device_count)();
  /// Throws `Error` if the device cannot be used.
  DeviceContext* (&open)(const DeviceOptions& options);
  void (&close)(DeviceContext* context) noexcept;
  DeviceInfo (&info)(DeviceContext& context);
  /// The software that drives the device, with versions; empty on the CPU. Slow: loads what is loaded lazily.
  std::string (&software)(DeviceContext& context);

  /// Device memory, 256-byte aligned, not initialised. Throws `Error` naming the bytes asked for and free.
  void* (&allocate)(DeviceContext& context, size_t bytes);
  void (&release)(DeviceContext& context, void* memory) noexcept;
  /// Host → device; the source may be reused on return.
  void (&upload)(DeviceContext& context, void* device, const void* host, size_t bytes);
  /// Device → host, after everything queued before; complete on return.
  void (&download)(DeviceContext& context, void* host, const void* device, size_t bytes);
  void (&fill_zero)(DeviceContext& context, void* device, size_t bytes);
  void (&synchronize)(DeviceContext& context);

  /// Makes a weight resident: uploads it, in the order `linear` wants. The CPU uses the host memory as it is.
  /// `bias` is host memory [m] or null. `gated`: for `gated_linear`, gate and up stacked; `linear` takes it
  /// too.
  LinearWeight (&prepare_linear)(DeviceContext& context, const HostMatrix& matrix, const Half* bias,
                                 bool gated);
  /// The same from `dense` [m][k] in device memory, which may be reused on return: packed if at least
  /// `min_sparsity` of it is zero.
  LinearWeight (&prepare_from_device)(DeviceContext& context, const Half* dense, int64_t m, int64_t k,
                                      double min_sparsity, const Half* bias, bool gated);
  void (&fill_random)(DeviceContext& context, const FillRandomArgs& args);

  /// Page-locked host memory, which copies that the host does not wait for need.
  void* (&allocate_host)(DeviceContext& context, size_t bytes);
  void (&release_host)(DeviceContext& context, void* memory) noexcept;
  /// Like `download`, but only queued: `host`, from `allocate_host`, is complete when a later mark is
  /// reached.
  void (&download_later)(DeviceContext& context, void* host, const void* device, size_t bytes);
  /// A mark behind everything queued so far, and waiting until it is reached. Wait for a mark before kMarks
  /// more are set. `wait` throws what `synchronize` throws.
  uint64_t (&mark)(DeviceContext& context);
  void (&wait)(DeviceContext& context, uint64_t mark);
  /// Seconds of the device from one mark to a later one, both reached and among the last kMarks; 0 where the
  /// device keeps no time.
  double (&between)(DeviceContext& context, uint64_t mark, uint64_t later);

  /// Records the ops that `body` calls, with the arguments they have, instead of running them. `body` must
  /// have run before, so that nothing needs to be tuned or allocated, and queues ops only.
  DeviceGraph* (&record)(DeviceContext& context, const std::function<void()>& body);
  /// Queues what was recorded. False, and nothing queued, where memory it uses has moved since: record it
  /// anew.
  bool (&replay)(DeviceContext& context, DeviceGraph& graph);
  void (&discard)(DeviceContext& context, DeviceGraph* graph) noexcept;

  /// For measuring what ops cost: those of these kinds (bits 1 << kind) are left out from now on. Results
  /// mean nothing then.
  void (&leave_out)(DeviceContext& context, uint32_t kinds);
  /// GB/s at which the device reads memory when it does nothing else, measured now; 0 if it is not measured
  /// here.
  double (&read_gbps)(DeviceContext& context);

  void (&embed)(DeviceContext&, const EmbedArgs&);
  void (&add_norm)(DeviceContext&, const AddNormArgs&);
  void (&linear)(DeviceContext&, const LinearArgs&);
  void (&gated_linear)(DeviceContext&, const GatedLinearArgs&);
  /// True where `linear` with `from` can leave a norm of its result to the `linear` or `gated_linear` with
  /// `to`, for n tokens; see DeferredNorm. Queues nothing.
  bool (&defers_norm)(DeviceContext&, const Linear& from, const Linear& to, int n);
  void (&rope_append)(DeviceContext&, const RopeAppendArgs&);
  void (&attention)(DeviceContext&, const AttentionArgs&);
  void (&gated_activation)(DeviceContext&, const GatedActivationArgs&);
  void (&gather_rows)(DeviceContext&, const GatherRowsArgs&);
  void (&logits)(DeviceContext&, const LogitsArgs&);
  void (&sample)(DeviceContext&, const SampleArgs&);
  void (&logprobs)(DeviceContext&, const LogprobsArgs&);

  // Pruning.
  void (&input_statistics)(DeviceContext&, const InputStatisticsArgs&);
  /// False where H is not positive definite; the matrix is spoilt then.
  bool (&inverse_factor)(DeviceContext&, const InverseFactorArgs&);
  void (&sparsegpt)(DeviceContext&, const SparseGptArgs&);

  /// Joins contexts, one per rank in rank order, into a group; before, each is a group of its own. Call once.
  void (&connect)(std::span<DeviceContext* const> ranks);
  /// x[count] = sum over ranks, summed in rank order in fp32, rounded once. Every rank of the group calls it.
  void (&all_reduce)(DeviceContext&, Half* x, int64_t count);
  /// out[n][total] from each rank's shard[n][cols]: rank r's columns begin where rank r-1's end.
  void (&all_gather_cols)(DeviceContext&, const float* shard, int n, int64_t cols, float* out, int64_t total);
  /// Wakes every rank waiting in a collective with an `Error` naming `cause`; later collectives throw too.
  void (&abort_group)(DeviceContext&, const char* cause) noexcept;
};

const Backend& cpu_backend();
/// Null where the program was built without CUDA.
const Backend* cuda_backend();
/// "cpu", "cuda", or "auto" (CUDA if built in and a device is there). Throws `UsageError` for another name,
/// `Error` if the backend asked for is not available.
const Backend& select_backend(std::string_view name);

}  // namespace spinfer
