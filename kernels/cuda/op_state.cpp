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
    case FaultKind::seen_token:
      fail("sample: seen or biased token {} is outside the vocabulary of {}", fault.value, fault.limit);
    case FaultKind::target_token:
      fail("logprobs: target {} is outside the vocabulary of {}", fault.value, fault.limit);
    case FaultKind::none:
      break;
  }
  fail("a CUDA kernel reported fault {}", int(fault.kind));
}

OpState::OpState() {
  void* memory = nullptr;
  SPINFER_CUDA_CHECK(cudaHostAlloc(&memory, sizeof(Fault) + kParts * kPartBytes, cudaHostAllocPortable));
  fault_ = static_cast<Fault*>(memory);
  std::memset(memory, 0, sizeof(Fault));
  staging_ = static_cast<char*>(memory) + sizeof(Fault);
  for (cudaEvent_t& event : part_done_)
    SPINFER_CUDA_CHECK(cudaEventCreateWithFlags(&event, cudaEventDisableTiming));
  for (cudaEvent_t& event : marks_) SPINFER_CUDA_CHECK(cudaEventCreate(&event));
}

OpState::~OpState() {
  if (group) group->leave(rank);
  for (const cudaEvent_t event : part_done_) cudaEventDestroy(event);
  for (const cudaEvent_t event : marks_) cudaEventDestroy(event);
  cudaFreeHost(fault_);
}

/// Room for one copy.
char* OpState::stage(Context& context, size_t bytes) {
  if (staged_ + bytes > kPartBytes) {
    SPINFER_CUDA_CHECK(cudaEventRecord(part_done_[part_], context.stream()));
    part_ = (part_ + 1) % kParts;
    staged_ = 0;
    SPINFER_CUDA_CHECK(cudaEventSynchronize(part_done_[part_]));  // an event never recorded counts as reached
  }
  char* place = staging_ + part_ * kPartBytes + staged_;
  staged_ += bytes;
  return place;
}

void OpState::upload(Context& context, void* device, const void* host, size_t bytes) {
  if (bytes == 0) return;
  check(bytes <= kMostStaged, "staged upload of {} bytes: at most {}", bytes, kMostStaged);
  char* place = stage(context, bytes);
  std::memcpy(place, host, bytes);
  SPINFER_CUDA_CHECK(cudaMemcpyAsync(device, place, bytes, cudaMemcpyHostToDevice, context.stream()));
}

uint64_t OpState::mark(Context& context) {
  SPINFER_CUDA_CHECK(cudaEventRecord(marks_[marked_ % kMarks], context.stream()));
  return marked_++;
}

void OpState::wait(uint64_t mark) {
  if (group) {
    group->wait(rank, kept(mark));  // a collective can wait for a rank that never comes
  } else {
    SPINFER_CUDA_CHECK(cudaEventSynchronize(kept(mark)));
  }
  throw_if_fault();
}

double OpState::between(uint64_t mark, uint64_t later) const {
  float ms = 0;
  SPINFER_CUDA_CHECK(cudaEventElapsedTime(&ms, kept(mark), kept(later)));
  return double(ms) / 1e3;
}

cudaEvent_t OpState::kept(uint64_t mark) const {
  check(mark < marked_ && marked_ - mark <= kMarks, "mark {} of {}: {} are kept", mark, marked_, kMarks);
  return marks_[mark % kMarks];
}

void OpState::drain(Context& context) {
  if (group) {
    group->drain(rank, context.stream());  // a collective can wait for a rank that never comes
  } else {
    SPINFER_CUDA_CHECK(cudaStreamSynchronize(context.stream()));
  }
  throw_if_fault();
}

void OpState::throw_if_fault() {
  if (fault_->kind == FaultKind::none) return;
  const int32_t row = fault_->row;
  const Fault fault{fault_->value, fault_->limit, row, fault_->kind};
  fault_->kind = FaultKind::none;
  throw_fault(fault);
}

}  // namespace spinfer::cuda
