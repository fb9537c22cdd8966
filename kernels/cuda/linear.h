// The CUDA `linear` and `prepare_linear` of the op contract (kernels/backend.h), and what benches and tests
// need of them.
#pragma once

#include "kernels/backend.h"
#include "kernels/cuda/context.h"
#include "kernels/cuda/linear_plan.h"
#include "kernels/cuda/tca_bme_device.h"

namespace spinfer::cuda {

/// Uploads a weight in the order `linear` wants and reserves the workspace any later `linear` with it needs.
LinearWeight prepare_linear(DeviceContext& context, const HostMatrix& matrix, const Half* bias,
                            bool gated = false);

/// The same from a dense matrix on the device, see Backend::prepare_from_device.
LinearWeight prepare_from_device(DeviceContext& context, const Half* dense, int64_t m, int64_t k,
                                 double min_sparsity, const Half* bias, bool gated = false);

/// Queues y = act(W·x + b) + residual with the kernel `choose_linear_kernel` names.
void linear(DeviceContext& context, const LinearArgs& args);
/// See Backend::defers_norm.
bool defers_norm(DeviceContext& context, const Linear& from, const Linear& to, int n);

/// True where one kernel computes `gated_linear`, which then does.
bool gates_in_kernel(const Context& context, const Linear& w, int n);
void gated_linear(Context& context, const GatedLinearArgs& args);

struct PackedOptions {
  bool keep_canonical = false;  ///< keep the canonical arrays beside a device layout: for tests and baselines
  bool gated = false;           ///< see Backend::prepare_linear
};
/// The same from a matrix already on the device; `bias` is device memory [m] or null and must outlive the
/// weight.
LinearWeight prepare_packed(Context& context, DeviceTcaBme matrix, const Half* bias,
                            PackedOptions options = {});

/// `linear` with a kernel named by the caller. Throws `Error` where the weight lacks what the kernel reads.
void linear_with(Context& context, const LinearArgs& args, LinearKernel kernel);

/// What `choose_linear_kernel` is asked for these arguments.
LinearProblem problem_of(const Linear& weight, int n);

}  // namespace spinfer::cuda
