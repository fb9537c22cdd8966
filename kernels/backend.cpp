#include "kernels/backend.h"

#include "kernels/check.h"

namespace spinfer {

#ifndef SPINFER_WITH_CUDA
const Backend* cuda_backend() {
  return nullptr;
}
#endif

const Backend& select_backend(std::string_view name) {
  if (name == "cpu") return cpu_backend();
  if (name != "cuda" && name != "auto")
    throw UsageError(fmt::format("--device {}: must be auto, cpu or cuda", name));
  const Backend* cuda = cuda_backend();
  const bool usable = cuda && cuda->device_count() > 0;
  if (usable) return *cuda;
  if (name == "auto") return cpu_backend();
  if (!cuda)
    fail("--device cuda: this spinfer was built without CUDA (no CUDA compiler was found); use --device cpu");
  fail("--device cuda: no usable CUDA device was found; see `spinfer doctor`, or use --device cpu");
}

}  // namespace spinfer
