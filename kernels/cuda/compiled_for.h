#pragma once

namespace spinfer::cuda {

/// The architecture that the code was compiled for which runs on the current device, as 10·major + minor.
/// Less than the device's own where the driver translates PTX of an older one.
int compiled_for();

}  // namespace spinfer::cuda
