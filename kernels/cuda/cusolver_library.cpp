#include "kernels/cuda/cusolver_library.h"

#include <dlfcn.h>

#include <string>

#include "kernels/check.h"

namespace spinfer::cuda {
namespace {

std::string library_name() {
  return fmt::format("libcusolver.so.{}", CUSOLVER_VER_MAJOR);
}

void* open_library() {
  void* handle = dlopen(library_name().c_str(), RTLD_NOW | RTLD_LOCAL);
  check(handle, "pruning with SparseGPT on a GPU needs cuSOLVER: {} (install it, or use --device cpu)",
        dlerror());
  return handle;
}

}  // namespace

void CusolverLibrary::Close::operator()(void* handle) const {
  dlclose(handle);
}

template <class Function>
Function* CusolverLibrary::find(const char* name) const {
  void* symbol = dlsym(handle_.get(), name);
  check(symbol, "{} is missing from {}", name, library_name());
  return reinterpret_cast<Function*>(symbol);
}

CusolverLibrary::CusolverLibrary()
    : handle_(open_library()),
      create(find<decltype(cusolverDnCreate)>("cusolverDnCreate")),
      destroy(find<decltype(cusolverDnDestroy)>("cusolverDnDestroy")),
      set_stream(find<decltype(cusolverDnSetStream)>("cusolverDnSetStream")),
      spotrf_buffer_size(find<decltype(cusolverDnSpotrf_bufferSize)>("cusolverDnSpotrf_bufferSize")),
      spotrf(find<decltype(cusolverDnSpotrf)>("cusolverDnSpotrf")) {}

void check_cusolver(cusolverStatus_t status) {
  check(status == CUSOLVER_STATUS_SUCCESS, "cuSOLVER: error {}", int(status));
}

CusolverHandle::CusolverHandle(const CusolverLibrary& library, cudaStream_t stream) : library_(library) {
  check_cusolver(library_.create(&handle_));
  check_cusolver(library_.set_stream(handle_, stream));
}

CusolverHandle::~CusolverHandle() {
  library_.destroy(handle_);
}

}  // namespace spinfer::cuda
