// Linears whose result for a token does not depend on the tokens beside it (--deterministic), whatever n is.
// Slower: 64 tokens at a time with one kernel and one algorithm.
#pragma once

#include <cstddef>

#include "kernels/ops.h"

namespace spinfer::cuda {

class Context;
struct DenseArgs;

void linear_invariant(Context& context, const LinearArgs& args);
/// `dense_linear` done so. Takes the context's workspace, a.scratch is not looked at.
void dense_invariant(Context& context, const DenseArgs& args);
/// What either takes of the context's workspace with this weight.
size_t invariant_workspace_bytes(const Linear& weight);

}  // namespace spinfer::cuda
