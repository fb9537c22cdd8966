#include "kernels/cuda/cuda_check.h"

#include <gtest/gtest.h>

#include <string>

#include "kernels/check.h"

namespace spinfer::cuda {
namespace {

TEST(SourcePath, IsThePartBelowTheProjectRoot) {
  EXPECT_EQ(source_path("/home/somebody/spinfer/kernels/cuda/context.cpp"), "kernels/cuda/context.cpp");
  EXPECT_EQ(source_path("kernels/cuda/context.cpp"), "kernels/cuda/context.cpp");
  EXPECT_EQ(source_path("context.cpp"), "context.cpp");
}

std::string message_of(void (*call)()) {
  try {
    call();
  } catch (const Error& e) {
    return e.what();
  }
  return "nothing thrown";
}

TEST(CudaCheck, NamesTheCallThePlaceAndTheMeaning) {
  const std::string message = message_of([] { SPINFER_CUDA_CHECK(cudaErrorInvalidValue); });
  EXPECT_NE(message.find("tests/kernels/cuda_check_test.cpp:"), std::string::npos) << message;
  EXPECT_NE(message.find("cudaErrorInvalidValue: invalid argument"), std::string::npos) << message;
  EXPECT_EQ(message.find('\n'), std::string::npos) << message;
}

TEST(CudaCheck, KnowsCublas) {
  const std::string message = message_of([] { SPINFER_CUDA_CHECK(CUBLAS_STATUS_NOT_SUPPORTED); });
  EXPECT_NE(message.find("CUBLAS_STATUS_NOT_SUPPORTED"), std::string::npos) << message;
}

TEST(CudaCheck, LetsSuccessPass) {
  EXPECT_NO_THROW(SPINFER_CUDA_CHECK(cudaSuccess));
  EXPECT_NO_THROW(SPINFER_CUDA_CHECK(CUBLAS_STATUS_SUCCESS));
}

}  // namespace
}  // namespace spinfer::cuda
