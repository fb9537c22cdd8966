// Strip streams back to a dense matrix on the device: the first half of the scratch prefill.
#pragma once

#include "kernels/format/strip_stream.h"

namespace spinfer::cuda {

class Context;

/// Writes all rows of the matrix, zeros included, to `dense` [m][k].
void decode_streams_on_device(Context& context, const StripStreamView& stream, Half* dense);

}  // namespace spinfer::cuda
