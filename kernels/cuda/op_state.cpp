#include "kernels/cuda/op_state.h"

#include <cstring>

#include "kernels/check.h"
#include "kernels/cuda/collective.h"
#include "kernels/cuda/context.h"
#include "kernels/cuda/cuda_check.h"

namespace spinfer::cuda {

void throw_fault(const Fault& fault) {
  switch (fault.kind) {
    case FaultKind::embed_id:
      fail("embed: row {} (id and offset) is outside the table of {} rows", fault.value, fault.limit);
    case FaultKind::nan_logits:
      fail("logits of row {} hold NaN: the model's weights or activations are damaged or overflow",
           fault.row);
    case FaultKind::bad_maximum:
      fail("logits of row {} have an infinite maximum: it must be finite", fault.row);
    case FaultKind::seen_token:
      fail("sample: seen token {} is outside the vocabulary of {}", fault.value, fault.limit);
    case FaultKind::target_token:
      fail("logprobs: target {} is outside the vocabulary of {}", fault.value, fault.limit);
    case FaultKind::none:
      break;
  }
  fail("a CUDA kernel reported fault {}", int(fault.kind));
}

OpState::OpState() {
  void* memory = nullptr;
  SPINFER_CUDA_CHECK(cudaHostAlloc(&memory, sizeof(Fault) + kStagingBytes, cudaHostAllocPortable));
  fault_ = static_cast<Fault*>(memory);
  std::memset(memory, 0, sizeof(Fault));
  staging_ = static_cast<char*>(memory) + sizeof(Fault);
}

OpState::~OpState() {
  if (group) group->leave(rank);
  cudaFreeHost(fault_);
}

void OpState::upload(Context& context, void* device, const void* host, size_t bytes) {
  if (bytes == 0) return;
  if (bytes > kStagingBytes) {
    SPINFER_CUDA_CHECK(cudaMemcpyAsync(device, host, bytes, cudaMemcpyHostToDevice, context.stream()));
    drain(context);  // the host memory may go away
    return;
  }
  if (staged_ + bytes > kStagingBytes) drain(context);
  std::memcpy(staging_ + staged_, host, bytes);
  SPINFER_CUDA_CHECK(
      cudaMemcpyAsync(device, staging_ + staged_, bytes, cudaMemcpyHostToDevice, context.stream()));
  staged_ += bytes;
}

void OpState::drain(Context& context) {
  if (group) {
    group->drain(rank, context.stream());  // a collective can wait for a rank that never comes
  } else {
    SPINFER_CUDA_CHECK(cudaStreamSynchronize(context.stream()));
  }
  staged_ = 0;
  if (fault_->kind == FaultKind::none) return;
  const int32_t row = fault_->row;
  const Fault fault{fault_->value, fault_->limit, row, fault_->kind};
  fault_->kind = FaultKind::none;
  throw_fault(fault);
}

}  // namespace spinfer::cuda
