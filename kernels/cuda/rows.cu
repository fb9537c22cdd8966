// Ops that copy rows: embed and gather_rows. One block a row, 16 bytes a thread and step where the row allows
// it. Bound by memory: one read and one write of n·d halves (embed with accumulate: two reads).
#include "kernels/cuda/fault.h"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/op_state.h"
#include "kernels/cuda/ops.h"

namespace spinfer::cuda {
namespace {

struct EmbedTask {
  const int32_t* ids;
  const int32_t* newest;
  int64_t id_offset;
  const __half* table;
  int64_t rows;
  int d;
  bool accumulate;
  __half* out;
  Fault* fault;
};

__device__ inline void add(Vec8& a, Vec8 b) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float2 x = __half22float2(a.pairs[i]), y = __half22float2(b.pairs[i]);
    a.pairs[i] = __floats2half2_rn(x.x + y.x, x.y + y.y);
  }
}
__device__ inline void add(__half& a, __half b) {
  a = __float2half_rn(__half2float(a) + __half2float(b));
}

/// T: Vec8 or __half. An id outside the table raises a fault and leaves its row as it is.
template <class T>
__global__ void embed_kernel(EmbedTask t) {
  let_successor_start();
  wait_for_predecessor();
  int32_t id = t.ids[blockIdx.x];
  if (id < 0 && t.newest) id = max(t.newest[-1 - id], 0);
  const int64_t row = int64_t{id} + t.id_offset;
  if (row < 0 || row >= t.rows) {
    if (threadIdx.x == 0) raise_fault(t.fault, FaultKind::embed_id, int(blockIdx.x), row, t.rows);
    return;
  }
  constexpr int kStep = sizeof(T) / sizeof(__half);
  const T* source = reinterpret_cast<const T*>(t.table + row * t.d);
  T* out = reinterpret_cast<T*>(t.out + int64_t{blockIdx.x} * t.d);
  for (int i = int(threadIdx.x); i < t.d / kStep; i += int(blockDim.x)) {
    T value = source[i];
    if (t.accumulate) add(value, out[i]);
    out[i] = value;
  }
}

template <class T>
__global__ void gather_rows_kernel(const __half* src, const int32_t* rows, int d, __half* out) {
  let_successor_start();
  wait_for_predecessor();
  constexpr int kStep = sizeof(T) / sizeof(__half);
  const T* source = reinterpret_cast<const T*>(src + int64_t{rows[blockIdx.x]} * d);
  T* target = reinterpret_cast<T*>(out + int64_t{blockIdx.x} * d);
  for (int i = int(threadIdx.x); i < d / kStep; i += int(blockDim.x)) target[i] = source[i];
}

/// Threads for a row of `items` vectors.
unsigned row_threads(int items) {
  return unsigned(items >= 512 ? 512 : items >= 128 ? 128 : 32);
}

}  // namespace

void embed(DeviceContext& opaque, const EmbedArgs& a) {
  Context& context = context_of(opaque);
  context.activate();
  const EmbedTask task{a.ids, a.newest,     a.id_offset,        device_half(a.table),      a.rows,
                       a.d,   a.accumulate, device_half(a.out), context.op_state().fault()};
  const bool vector = vectorisable(a.d, a.table, a.out);
  launch(context, "embed", vector ? embed_kernel<Vec8> : embed_kernel<__half>,
         {dim3(unsigned(a.n)), dim3(row_threads(vector ? a.d / kVec : a.d))}, task);
}

void gather_rows(DeviceContext& opaque, const GatherRowsArgs& a) {
  Context& context = context_of(opaque);
  context.activate();
  const bool vector = vectorisable(a.d, a.src, a.out);
  launch(context, "gather_rows", vector ? gather_rows_kernel<Vec8> : gather_rows_kernel<__half>,
         {dim3(unsigned(a.n)), dim3(row_threads(vector ? a.d / kVec : a.d))}, device_half(a.src), a.rows, a.d,
         device_half(a.out));
}

}  // namespace spinfer::cuda
