// The forward pass in pieces, for work that goes through a model layer by layer: calibration.
#pragma once

#include <functional>

#include "models/model.h"

namespace spinfer {

/// Sees the input x [n][k] (device memory) of a linear before it runs. `linear` is the member of LayerWeights
/// it is.
using LinearObserver = std::function<void(const LinearWeight& linear, const Half* x, int n)>;

/// workspace.h = the embeddings of batch.token_ids.
void forward_embeddings(Device& device, const Model& model, const ForwardBatch& batch, Workspace& workspace);

/// Takes workspace.h through model.layers[index], with the cache kv.layers[index]: the same numbers as in
/// `forward`, but for the rounding of norms that it defers.
void forward_layer(Device& device, const Model& model, int index, const ForwardBatch& batch,
                   const KvCacheView& kv, Workspace& workspace, const LinearObserver& observer = {});

}  // namespace spinfer
