// What the tests of the CUDA ops share: a device or a skip, device arrays with guarded ends, comparison with
// the CPU.
#pragma once

#include <memory>

#include "tests/kernels/cpu_ops.h"

namespace spinfer::test {

/// Device memory with 256 guard bytes before and behind that must not change.
template <class T>
class Guarded {
 public:
  Guarded(Device& device, const std::vector<T>& host) : size_(host.size()) {
    std::vector<char> image(kGuard, kPattern);
    const char* bytes = reinterpret_cast<const char*>(host.data());
    image.insert(image.end(), bytes, bytes + host.size() * sizeof(T));
    image.insert(image.end(), kGuard, kPattern);
    bytes_ = DeviceArray<char>(device, int64_t(image.size()), MemoryUse::workspace);
    bytes_.upload(image.data(), bytes_.size());
  }
  T* data() const { return reinterpret_cast<T*>(bytes_.data() + kGuard); }
  /// The contents; fails the test where a guard changed.
  std::vector<T> get() const {
    const std::vector<char> image = bytes_.download(bytes_.size());
    for (size_t i = 0; i < kGuard; ++i) {
      if (image[i] != kPattern || image[image.size() - 1 - i] != kPattern) {
        ADD_FAILURE() << "something was written beside an array of " << size_;
        break;
      }
    }
    const T* values = reinterpret_cast<const T*>(image.data() + kGuard);
    return {values, values + size_};
  }

 private:
  static constexpr size_t kGuard = 256;
  static constexpr char kPattern = 0x5a;
  size_t size_;
  DeviceArray<char> bytes_;
};

class CudaOps : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    const Backend* cuda = cuda_backend();
    if (cuda && cuda->device_count() > 0) shared_ = std::make_unique<Device>(*cuda, DeviceOptions{});
  }
  static void TearDownTestSuite() { shared_.reset(); }
  void SetUp() override {
    if (!shared_) GTEST_SKIP() << "no CUDA device";
  }

  Device& gpu() { return *shared_; }
  const Backend& ops() { return shared_->ops(); }
  DeviceContext& context() { return shared_->context(); }
  template <class T>
  Guarded<T> on_gpu(const std::vector<T>& host) {
    return Guarded<T>(*shared_, host);
  }

  CpuDevice cpu_;

 private:
  static inline std::unique_ptr<Device> shared_;
};

template <class T>
std::vector<double> doubles(const std::vector<T>& values) {
  std::vector<double> result;
  for (const T& value : values) result.push_back(to_double(value));
  return result;
}

/// Two fp32 evaluations of one formula, each rounded to fp16: neighbours at most.
inline constexpr Tolerance kNeighbours{2e-6, 0x1p-10};

}  // namespace spinfer::test
