#include "kernels/cuda/nccl_library.h"

#include <dlfcn.h>

#include <cstdlib>
#include <type_traits>

#include "kernels/check.h"

namespace spinfer::cuda {
namespace {

void* open_nccl() {
  // NVLink multicast stays off: NCCL reads this when it is loaded or first used.
  check(setenv("NCCL_NVLS_ENABLE", "0", 1) == 0, "cannot set NCCL_NVLS_ENABLE=0");
  void* handle = dlopen("libnccl.so.2", RTLD_NOW | RTLD_LOCAL);
  check(handle, "several GPUs need NCCL: {} (install libnccl2 or add its folder to LD_LIBRARY_PATH)",
        dlerror());
  return handle;
}

}  // namespace

void NcclLibrary::Close::operator()(void* handle) const {
  dlclose(handle);
}

template <class Function>
Function* NcclLibrary::find(const char* name) const {
  void* symbol = dlsym(handle_.get(), name);
  check(symbol, "libnccl.so.2 has no {}: version 2.14 or newer is needed", name);
  return reinterpret_cast<Function*>(symbol);
}

NcclLibrary::NcclLibrary()
    : handle_(open_nccl()),
      get_unique_id(find<decltype(ncclGetUniqueId)>("ncclGetUniqueId")),
      comm_init_rank_config(find<decltype(ncclCommInitRankConfig)>("ncclCommInitRankConfig")),
      comm_get_async_error(find<decltype(ncclCommGetAsyncError)>("ncclCommGetAsyncError")),
      comm_abort(find<decltype(ncclCommAbort)>("ncclCommAbort")),
      group_start(find<decltype(ncclGroupStart)>("ncclGroupStart")),
      group_end(find<decltype(ncclGroupEnd)>("ncclGroupEnd")),
      all_gather(find<decltype(ncclAllGather)>("ncclAllGather")),
      all_reduce(find<decltype(ncclAllReduce)>("ncclAllReduce")),
      send(find<decltype(ncclSend)>("ncclSend")),
      recv(find<decltype(ncclRecv)>("ncclRecv")),
      get_version(find<decltype(ncclGetVersion)>("ncclGetVersion")),
      get_error_string(find<decltype(ncclGetErrorString)>("ncclGetErrorString")),
      get_last_error(find<decltype(ncclGetLastError)>("ncclGetLastError")) {}

std::string nccl_version() {
  try {
    const NcclLibrary library;
    int version = 0;
    if (library.get_version(&version) == ncclSuccess)
      return fmt::format("NCCL {}.{}.{}", version / 10000, version % 10000 / 100, version % 100);
  } catch (const Error&) {  // said by the answer
  }
  return "no NCCL";
}

}  // namespace spinfer::cuda
