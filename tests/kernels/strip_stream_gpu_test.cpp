// The GPU builder of strip streams against make_strip_stream, the layout's specification: every byte. Skipped
// where there is no GPU.
#include <gtest/gtest.h>

#include <cstring>
#include <optional>
#include <tuple>

#include "kernels/check.h"
#include "kernels/cuda/cuda_check.h"
#include "kernels/cuda/spmm.h"
#include "kernels/cuda/tca_bme_device.h"
#include "kernels/thread_pool.h"
#include "tests/kernels/gpu_matrix.h"

namespace spinfer::cuda {
namespace {

class StripStreamGpu : public testing::Test {
 protected:
  void SetUp() override {
    if (device_count() == 0) GTEST_SKIP() << "no CUDA device";
    context_.emplace(DeviceOptions{});
  }

  template <class T>
  static std::vector<T> download(const T* device, size_t count) {
    std::vector<T> host(count);
    SPINFER_CUDA_CHECK(cudaMemcpy(host.data(), device, count * sizeof(T), cudaMemcpyDeviceToHost));
    return host;
  }

  /// Builds both ways, the host's cut finer while the ring is too small, and compares.
  void expect_same_bytes(int64_t m, int64_t k, Mask mask, double sparsity, int chunks, bool paired = false) {
    SCOPED_TRACE(fmt::format("{}×{} {} s={} {} chunks{}", m, k, to_string(mask), sparsity, chunks,
                             paired ? " paired" : ""));
    GuardedHalves dense(*context_, m * k);
    fill_masked(*context_, dense.data(), m, k, mask, sparsity, ++seed_);
    const std::vector<Half> copy = dense.download();
    ThreadPool pool(2);
    const TcaBmeMatrix matrix = encode(DenseMatrix{m, k, copy.data(), nullptr}, pool);
    StripStreamHost expected = make_strip_stream(matrix.view(), chunks, paired);
    while (!expected.fits_ring)
      expected = make_strip_stream(matrix.view(), refine_strip_chunks(expected.shape), paired);

    const DeviceTcaBme canonical = upload_tca_bme(*context_, matrix.view());
    const StripStream built = make_strip_stream_on_device(*context_, canonical.view, chunks, paired);
    const StripStreamView& view = built.view;
    ASSERT_EQ(view.shape.chunks, expected.shape.chunks);
    EXPECT_EQ(view.shape.paired, paired);
    ASSERT_EQ(view.rows, expected.rows);
    EXPECT_EQ(view.max_chunk_rows, expected.max_chunk_rows);
    EXPECT_EQ(download(view.records, expected.records.size()), expected.records);
    EXPECT_EQ(download(view.values, expected.values.size()), expected.values);
    const auto places = download(view.places, expected.places.size());
    EXPECT_EQ(std::memcmp(places.data(), expected.places.data(), places.size() * sizeof(StripPlace)), 0);
  }

  std::optional<Context> context_;
  uint64_t seed_ = 0;
};

TEST_F(StripStreamGpu, EverySparsityAndOddSizes) {
  for (const auto& [m, k, chunks] : {std::tuple<int64_t, int64_t, int>{1, 1, 1},
                                     {16, 16, 1},
                                     {17, 131, 1},
                                     {17, 131, 3},
                                     {130, 700, 3},
                                     {65, 1999, 7},
                                     {256, 1024, 2}}) {
    for (const double sparsity : {0.0, 0.05, 0.3, 0.5, 0.7, 0.95, 1.0})
      expect_same_bytes(m, k, Mask::random, sparsity, chunks);
  }
}

TEST_F(StripStreamGpu, UnevenMasks) {
  for (const Mask mask : {Mask::one_dense_row, Mask::one_dense_tile, Mask::one_empty_strip, Mask::one_lane}) {
    for (const double sparsity : {0.0, 0.5}) {
      expect_same_bytes(200, 1096, mask, sparsity, 3);
      expect_same_bytes(200, 1096, mask, sparsity, 18);
    }
  }
}

TEST_F(StripStreamGpu, PairedMatrices) {
  for (const auto& [m, k, chunks] : {std::tuple<int64_t, int64_t, int>{64, 16, 1},
                                     {128, 131, 3},
                                     {192, 700, 3},
                                     {704, 1999, 7},
                                     {1024, 1024, 2}}) {
    for (const double sparsity : {0.0, 0.05, 0.5, 0.95, 1.0})
      expect_same_bytes(m, k, Mask::random, sparsity, chunks, true);
    for (const Mask mask : {Mask::one_dense_row, Mask::one_dense_tile, Mask::one_empty_strip, Mask::one_lane})
      expect_same_bytes(m, k, mask, 0.5, chunks, true);
  }
}

TEST_F(StripStreamGpu, RejectsMatricesWithoutPairs) {
  GuardedHalves dense(*context_, 96 * 64);
  fill_masked(*context_, dense.data(), 96, 64, Mask::random, 0.5, 1);
  const std::vector<Half> copy = dense.download();
  ThreadPool pool(1);
  const TcaBmeMatrix matrix = encode(DenseMatrix{96, 64, copy.data(), nullptr}, pool);
  const DeviceTcaBme canonical = upload_tca_bme(*context_, matrix.view());
  EXPECT_THROW(make_strip_stream_on_device(*context_, canonical.view, 1, true), Error);
  EXPECT_THROW(make_strip_stream_on_device(*context_, canonical.view, true), Error);
}

TEST_F(StripStreamGpu, PlannedCuts) {
  const int64_t m = 1024, k = 4096;
  for (const double sparsity : {0.3, 0.5, 0.7})
    expect_same_bytes(m, k, Mask::random, sparsity, plan_strip_chunks(m, k, 1 - sparsity, context_->facts()));
}

}  // namespace
}  // namespace spinfer::cuda
