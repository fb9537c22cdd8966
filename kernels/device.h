// Owning handles around a backend's device: Device (context) and DeviceArray (memory), with accounting by
// purpose.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <limits>
#include <string_view>
#include <utility>
#include <vector>

#include "kernels/backend.h"
#include "kernels/check.h"

namespace spinfer {

enum class MemoryUse { weights, kv_cache, workspace, count_ };

/// One opened device. Address-stable; DeviceArrays and LinearWeights must not outlive it.
class Device {
 public:
  Device(const Backend& backend, const DeviceOptions& options)
      : backend_(backend), context_(backend.open(options)) {}
  ~Device() { backend_.close(context_); }
  Device(const Device&) = delete;
  Device& operator=(const Device&) = delete;

  const Backend& ops() const { return backend_; }
  DeviceContext& context() { return *context_; }
  DeviceInfo info() { return backend_.info(*context_); }

  /// Bytes now held for a purpose (weights are added by whoever prepares them), and the largest total seen.
  int64_t bytes(MemoryUse use) const { return bytes_[size_t(use)]; }
  int64_t peak_bytes() const { return peak_; }
  void account(MemoryUse use, int64_t delta) {
    bytes_[size_t(use)] += delta;
    total_ += delta;
    if (total_ > peak_) peak_ = total_;
  }

 private:
  const Backend& backend_;
  DeviceContext* context_;
  std::array<int64_t, size_t(MemoryUse::count_)> bytes_{};
  int64_t total_ = 0;
  int64_t peak_ = 0;
};

/// Work recorded on a device; empty where nothing is recorded. Movable.
class RecordedWork {
 public:
  RecordedWork() = default;
  /// See Backend::record.
  RecordedWork(Device& device, const std::function<void()>& body)
      : device_(&device), graph_(device.ops().record(device.context(), body)) {}
  RecordedWork(RecordedWork&& other) noexcept
      : device_(other.device_), graph_(std::exchange(other.graph_, nullptr)) {}
  RecordedWork& operator=(RecordedWork&& other) noexcept {
    std::swap(device_, other.device_);
    std::swap(graph_, other.graph_);
    return *this;
  }
  ~RecordedWork() {
    if (graph_) device_->ops().discard(device_->context(), graph_);
  }

  /// Queues it. False where nothing is recorded, or what is must be recorded anew.
  bool replay() const { return graph_ && device_->ops().replay(device_->context(), *graph_); }

 private:
  Device* device_ = nullptr;
  DeviceGraph* graph_ = nullptr;
};

/// `size` elements of T in page-locked host memory, not initialised. Movable.
template <class T>
class HostArray {
 public:
  HostArray() = default;
  HostArray(Device& device, int64_t size)
      : device_(&device),
        size_(size),
        data_(size ? static_cast<T*>(device.ops().allocate_host(device.context(), size_t(size) * sizeof(T)))
                   : nullptr) {}
  HostArray(HostArray&& other) noexcept
      : device_(other.device_), size_(other.size_), data_(std::exchange(other.data_, nullptr)) {}
  HostArray& operator=(HostArray&& other) noexcept {
    std::swap(device_, other.device_);
    std::swap(size_, other.size_);
    std::swap(data_, other.data_);
    return *this;
  }
  ~HostArray() {
    if (data_) device_->ops().release_host(device_->context(), data_);
  }

  T* data() const { return data_; }
  int64_t size() const { return size_; }

 private:
  Device* device_ = nullptr;
  int64_t size_ = 0;
  T* data_ = nullptr;
};

/// `size` elements of T in device memory. Movable.
template <class T>
class DeviceArray {
 public:
  DeviceArray() = default;
  DeviceArray(Device& device, int64_t size, MemoryUse use)
      : device_(&device),
        size_(size),
        use_(use),
        data_(size ? static_cast<T*>(device.ops().allocate(device.context(), bytes_of(size))) : nullptr) {
    device.account(use, size * int64_t(sizeof(T)));
  }
  DeviceArray(DeviceArray&& other) noexcept { swap(other); }
  DeviceArray& operator=(DeviceArray&& other) noexcept {
    DeviceArray(std::move(other)).swap(*this);
    return *this;
  }
  ~DeviceArray() {
    if (!data_) return;
    device_->ops().release(device_->context(), data_);
    device_->account(use_, -size_ * int64_t(sizeof(T)));
  }

  T* data() const { return data_; }
  int64_t size() const { return size_; }

  /// The first `count` elements; host memory may be reused on return.
  void upload(const T* host, int64_t count) {
    if (count) device_->ops().upload(device_->context(), data_, host, size_t(count) * sizeof(T));
  }
  /// Queues a copy of the first `count` elements, see Backend::download_later.
  void download_later(const HostArray<T>& host, int64_t count) const {
    if (count)
      device_->ops().download_later(device_->context(), host.data(), data_, size_t(count) * sizeof(T));
  }
  std::vector<T> download(int64_t count) const {
    std::vector<T> host(static_cast<size_t>(count));
    if (count) device_->ops().download(device_->context(), host.data(), data_, size_t(count) * sizeof(T));
    return host;
  }

 private:
  static size_t bytes_of(int64_t size) {
    constexpr int64_t kMax = std::numeric_limits<int64_t>::max() / int64_t{sizeof(T)};
    check(size >= 0 && size <= kMax, "a device array of {} elements: must be 0…{}", size, kMax);
    return size_t(size) * sizeof(T);
  }
  void swap(DeviceArray& other) noexcept {
    std::swap(device_, other.device_);
    std::swap(size_, other.size_);
    std::swap(use_, other.use_);
    std::swap(data_, other.data_);
  }
  Device* device_ = nullptr;
  int64_t size_ = 0;
  MemoryUse use_ = MemoryUse::workspace;
  T* data_ = nullptr;
};

}  // namespace spinfer
