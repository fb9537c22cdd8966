// Devices, memory and their limits on the CPU.
#include <gtest/gtest.h>

#include <cstdint>
#include <filesystem>
#include <fstream>

#include "kernels/check.h"
#include "kernels/cpu/memory.h"
#include "tests/kernels/cpu_ops.h"

namespace spinfer::test {
namespace {

namespace fs = std::filesystem;

TEST(CpuBackend, AllocatesAlignedMemoryAndCountsIt) {
  CpuDevice device;
  {
    DeviceArray<float> a(device, 1000, MemoryUse::workspace);
    DeviceArray<Half> b(device, 7, MemoryUse::kv_cache), none(device, 0, MemoryUse::weights);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(a.data()) % 256, 0u);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(b.data()) % 256, 0u);
    EXPECT_EQ(none.data(), nullptr);
    EXPECT_EQ(device.bytes(MemoryUse::workspace), 4000);
    EXPECT_EQ(device.bytes(MemoryUse::kv_cache), 14);

    std::vector<float> values(1000);
    for (int i = 0; i < 1000; ++i) values[i] = float(i);
    a.upload(values.data(), 1000);
    EXPECT_EQ(a.download(1000), values);
    DeviceArray<float> moved = std::move(a);
    EXPECT_EQ(moved.download(1000), values);
    EXPECT_EQ(device.bytes(MemoryUse::workspace), 4000);
    device.ops().fill_zero(device.context(), moved.data(), 4000);
    EXPECT_EQ(moved.download(1000), std::vector<float>(1000));
    moved = DeviceArray<float>(device, 10, MemoryUse::workspace);
    EXPECT_EQ(device.bytes(MemoryUse::workspace), 40);
  }
  EXPECT_EQ(device.bytes(MemoryUse::workspace) + device.bytes(MemoryUse::kv_cache), 0);
  EXPECT_EQ(device.peak_bytes(), 4054);
}

TEST(CpuBackend, RefusesMoreMemoryThanThereIs) {
  CpuDevice device;
  const int64_t too_much = device.info().total_bytes + 1;
  try {
    device.ops().allocate(device.context(), size_t(too_much));
    FAIL() << "no error";
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find(std::to_string(too_much)), std::string::npos) << error.what();
    EXPECT_NE(std::string(error.what()).find("free"), std::string::npos) << error.what();
  }
  EXPECT_THROW(device.ops().allocate(device.context(), SIZE_MAX), Error);
  EXPECT_THROW(DeviceArray<float>(device, INT64_MAX / 5, MemoryUse::workspace), Error);
  EXPECT_THROW(DeviceArray<float>(device, (int64_t{1} << 62) + 1, MemoryUse::workspace), Error);  // 4 bytes mod 2^64
  EXPECT_THROW(DeviceArray<float>(device, -1, MemoryUse::workspace), Error);
  EXPECT_EQ(device.peak_bytes(), 0);
}

TEST(CpuBackend, DescribesTheDevice) {
  CpuDevice device(3);
  const DeviceInfo info = device.info();
  EXPECT_EQ(info.threads, 3);
  EXPECT_GT(info.free_bytes, 0);
  EXPECT_LE(info.free_bytes, info.total_bytes);
  EXPECT_FALSE(info.name.empty());
  EXPECT_EQ(device.ops().device_count(), 1);
  EXPECT_THROW(CpuDevice(-1), Error);
  EXPECT_THROW(CpuDevice(1000000), Error);
}

TEST(SelectBackend, KnowsItsNames) {
  EXPECT_STREQ(select_backend("cpu").name, "cpu");
  EXPECT_NO_THROW(select_backend("auto"));
  EXPECT_THROW(select_backend("gpu"), UsageError);
  EXPECT_THROW(select_backend(""), UsageError);
}

/// A root folder with the files `host_memory` reads.
class HostMemory : public testing::Test {
 protected:
  void SetUp() override {
    root_ = fs::path(testing::TempDir()) /
            ("host_memory_" + std::string(testing::UnitTest::GetInstance()->current_test_info()->name()));
    fs::remove_all(root_);
    write("proc/meminfo", "MemTotal:  1000 kB\nMemFree:   10 kB\nMemAvailable:    600 kB\n");
  }
  void TearDown() override { fs::remove_all(root_); }
  void write(const fs::path& file, const std::string& text) {
    fs::create_directories((root_ / file).parent_path());
    std::ofstream(root_ / file) << text;
  }
  void expect(int64_t total, int64_t free) {
    const cpu::HostMemory memory = cpu::host_memory(root_);
    EXPECT_EQ(memory.total_bytes, total);
    EXPECT_EQ(memory.free_bytes, free);
  }
  fs::path root_;
};

TEST_F(HostMemory, IsTheMachinesWithoutAGroup) {
  expect(1000 * 1024, 600 * 1024);
  write("proc/self/cgroup", "0::/\n");
  write("sys/fs/cgroup/memory.max", "max\n");
  expect(1000 * 1024, 600 * 1024);
}

TEST_F(HostMemory, IsTheLimitOfAVersion2GroupOrItsParent) {
  write("proc/self/cgroup", "0::/a/b\n");
  write("sys/fs/cgroup/a/b/memory.max", "max\n");
  write("sys/fs/cgroup/a/memory.max", "500000\n");
  write("sys/fs/cgroup/a/memory.current", "300000\n");
  write("sys/fs/cgroup/a/memory.stat", "anon 1\ninactive_file 100000\nactive_file 5\n");
  expect(500000, 300000);
}

TEST_F(HostMemory, IsTheMountPointsLimitInsideAContainer) {
  write("proc/self/cgroup", "0::/not/visible/here\n");
  write("sys/fs/cgroup/memory.max", "400000\n");
  write("sys/fs/cgroup/memory.current", "500000\n");
  expect(400000, 0);
}

TEST_F(HostMemory, IsTheLimitOfAVersion1Group) {
  write("proc/self/cgroup", "5:cpu,cpuacct:/x\n4:memory:/x\n");
  write("sys/fs/cgroup/memory/x/memory.limit_in_bytes", "200000\n");
  write("sys/fs/cgroup/memory/x/memory.usage_in_bytes", "150000\n");
  write("sys/fs/cgroup/memory/x/memory.stat", "inactive_file 1\ntotal_inactive_file 50000\n");
  write("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n");
  expect(200000, 100000);
}

TEST_F(HostMemory, SurvivesNonsense) {
  write("proc/meminfo", "MemTotal: lots\nMemAvailable:\n");
  write("proc/self/cgroup", "what\n::\n0::/../..\n");
  write("sys/fs/cgroup/memory.max", "-5\n");
  EXPECT_NO_THROW(cpu::host_memory(root_));
  EXPECT_NO_THROW(cpu::host_memory(root_ / "absent"));
}

}  // namespace
}  // namespace spinfer::test
