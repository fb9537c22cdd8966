// Queued work on a GPU: recorded graphs, marks, copies the host does not wait for; weights made on the
// device.
#include <algorithm>
#include <cmath>

#include "tests/kernels/cuda_ops.h"

namespace spinfer::test {
namespace {

using CudaGraph = CudaOps;
using CudaWeights = CudaOps;

std::vector<int32_t> counting(int n, int first) {
  std::vector<int32_t> values(static_cast<size_t>(n));
  for (int i = 0; i < n; ++i) values[size_t(i)] = first + i;
  return values;
}

TEST_F(CudaGraph, ReplaysWhatWasRecordedOnNewContents) {
  Random random(1);
  constexpr int kRows = 40, kWidth = 96, kCount = 5;
  const auto table = random.halves(size_t(kRows) * kWidth);
  const auto gpu_table = on_gpu(table);
  const auto ids = on_gpu(counting(kCount, 0));
  const auto out = on_gpu(nan_halves(size_t(kCount) * kWidth));
  const auto body = [&] {
    ops().embed(context(), {.ids = ids.data(),
                            .table = gpu_table.data(),
                            .rows = kRows,
                            .n = kCount,
                            .d = kWidth,
                            .out = out.data()});
  };
  const auto rows_from = [&](int first) {
    return std::vector<Half>(table.begin() + first * kWidth, table.begin() + (first + kCount) * kWidth);
  };
  const RecordedWork work(gpu(), body);
  EXPECT_NE(out.get(), rows_from(0)) << "recording must not run anything";
  ASSERT_TRUE(work.replay());
  EXPECT_EQ(out.get(), rows_from(0));
  const auto next = counting(kCount, 30);
  ops().upload(context(), ids.data(), next.data(), next.size() * sizeof(int32_t));
  ASSERT_TRUE(work.replay());
  EXPECT_EQ(out.get(), rows_from(30));
}

TEST_F(CudaGraph, EmbedTakesIdsTheStepBeforeSampled) {
  Random random(2);
  constexpr int kRows = 40, kWidth = 64;
  const auto table = random.halves(size_t(kRows) * kWidth);
  const std::vector<int32_t> ids{3, -2, -1, 7, -3}, newest{11, 22, kNoToken}, meant{3, 22, 11, 7, 0};
  const auto gpu_table = on_gpu(table);
  const auto gpu_ids = on_gpu(ids), gpu_newest = on_gpu(newest);
  const auto out = on_gpu(nan_halves(ids.size() * kWidth));
  ops().embed(context(), {.ids = gpu_ids.data(),
                          .newest = gpu_newest.data(),
                          .table = gpu_table.data(),
                          .rows = kRows,
                          .n = int(ids.size()),
                          .d = kWidth,
                          .out = out.data()});
  const auto got = out.get();
  for (size_t i = 0; i < meant.size(); ++i)
    EXPECT_TRUE(std::equal(got.begin() + long(i) * kWidth, got.begin() + long(i + 1) * kWidth,
                           table.begin() + long(meant[i]) * kWidth))
        << i;
}

TEST_F(CudaGraph, CopiesAreThereWhenTheMarkIsReached) {
  const int count = 1 << 20;
  DeviceArray<int32_t> device(gpu(), count, MemoryUse::workspace);
  std::vector<HostArray<int32_t>> host;
  std::vector<uint64_t> marks;
  for (int i = 0; i < 3; ++i) {
    const auto values = counting(count, i);
    device.upload(values.data(), count);
    host.emplace_back(gpu(), count);
    device.download_later(host.back(), count);
    marks.push_back(ops().mark(context()));
  }
  for (int i = 0; i < 3; ++i) {
    ops().wait(context(), marks[size_t(i)]);
    EXPECT_EQ(host[size_t(i)].data()[0], i);
    EXPECT_EQ(host[size_t(i)].data()[count - 1], i + count - 1);
  }
}

TEST_F(CudaWeights, RandomOnesAreTheCpus) {
  Random random(3);
  const auto values = random.halves(size_t{1} << kRandomValueBits);
  const auto gpu_values = on_gpu(values);
  for (const auto& [rows, cols] : {std::pair<int64_t, int64_t>{3, 5}, {130, 257}, {700, 1024}}) {
    FillRandomArgs args{.out = nullptr,
                        .rows = rows,
                        .cols = cols,
                        .k = cols + 9,
                        .first_row = 4,
                        .first_col = 6,
                        .key = 77,
                        .zero_below = uint64_t{6} << 29,
                        .values = values.data()};
    auto want = nan_halves(size_t(rows * cols));
    const auto out = on_gpu(want);
    args.out = want.data();
    cpu_.ops().fill_random(cpu_.context(), args);
    args.out = out.data();
    args.values = gpu_values.data();
    ops().fill_random(context(), args);
    EXPECT_EQ(out.get(), want);
    const auto zeros = std::count(want.begin(), want.end(), Half{});
    const double tolerance = 3 / std::sqrt(double(want.size()));
    EXPECT_NEAR(double(zeros) / double(want.size()), 0.75, tolerance);
  }
}

TEST_F(CudaWeights, MatricesOnTheDeviceAreCountedAndPackedAsOnTheCpu) {
  Random random(4);
  constexpr int64_t kM = 130, kK = 200;
  auto dense = random.halves(size_t(kM * kK));
  for (size_t i = 0; i < dense.size(); ++i)
    if (i % 5 < 2) dense[i] = Half{};
  const auto gpu_dense = on_gpu(dense);
  for (const double min_sparsity : {0.3, 0.5, 2.0}) {
    const LinearWeight want =
        cpu_.ops().prepare_from_device(cpu_.context(), dense.data(), kM, kK, min_sparsity, nullptr, false);
    const LinearWeight got =
        ops().prepare_from_device(context(), gpu_dense.data(), kM, kK, min_sparsity, nullptr, false);
    EXPECT_EQ(got.view.is_dense(), want.view.is_dense()) << min_sparsity;
    EXPECT_EQ(got.packed_bytes, want.packed_bytes) << min_sparsity;
  }
}

}  // namespace
}  // namespace spinfer::test
