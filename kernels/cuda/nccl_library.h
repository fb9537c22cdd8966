// NCCL, loaded when the first group of GPUs is made: a program on one GPU needs no NCCL installed.
#pragma once

#include <nccl.h>

#include <memory>
#include <string>

namespace spinfer::cuda {

/// The functions of libnccl.so.2 this program calls. Throws `Error` where the library or one of them is
/// missing.
class NcclLibrary {
 public:
  NcclLibrary();

 private:
  struct Close {
    void operator()(void* handle) const;
  };
  template <class Function>
  Function* find(const char* name) const;
  std::unique_ptr<void, Close> handle_;  // before the functions found in it

 public:
  decltype(&ncclGetUniqueId) get_unique_id;
  decltype(&ncclCommInitRankConfig) comm_init_rank_config;
  decltype(&ncclCommGetAsyncError) comm_get_async_error;
  decltype(&ncclCommAbort) comm_abort;
  decltype(&ncclGroupStart) group_start;
  decltype(&ncclGroupEnd) group_end;
  decltype(&ncclAllGather) all_gather;
  decltype(&ncclAllReduce) all_reduce;
  decltype(&ncclSend) send;
  decltype(&ncclRecv) recv;
  decltype(&ncclGetVersion) get_version;
  decltype(&ncclGetErrorString) get_error_string;
  decltype(&ncclGetLastError) get_last_error;
};

/// "NCCL 2.27.3", or "no NCCL" where it cannot be loaded.
std::string nccl_version();

}  // namespace spinfer::cuda
