// cuSOLVER, loaded when pruning first wants it: nothing else of the program needs the library.
#pragma once

#include <cusolverDn.h>

#include <memory>

namespace spinfer::cuda {

/// The entry points used. Throws `Error` where the library or one of them is not there.
class CusolverLibrary {
  struct Close {
    void operator()(void* handle) const;
  };
  std::unique_ptr<void, Close> handle_;
  template <class Function>
  Function* find(const char* name) const;

 public:
  CusolverLibrary();

  decltype(cusolverDnCreate)* const create;
  decltype(cusolverDnDestroy)* const destroy;
  decltype(cusolverDnSetStream)* const set_stream;
  decltype(cusolverDnSpotrf_bufferSize)* const spotrf_buffer_size;
  decltype(cusolverDnSpotrf)* const spotrf;
};

/// Throws `Error` with the status code.
void check_cusolver(cusolverStatus_t status);

class CusolverHandle {
 public:
  CusolverHandle(const CusolverLibrary& library, cudaStream_t stream);
  ~CusolverHandle();
  CusolverHandle(const CusolverHandle&) = delete;
  CusolverHandle& operator=(const CusolverHandle&) = delete;

  cusolverDnHandle_t get() const { return handle_; }

 private:
  const CusolverLibrary& library_;
  cusolverDnHandle_t handle_ = nullptr;
};

}  // namespace spinfer::cuda
