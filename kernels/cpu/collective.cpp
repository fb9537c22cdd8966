#include "kernels/cpu/collective.h"

#include <algorithm>

#include "kernels/check.h"

namespace spinfer::cpu {

std::span<const Group::Buffer> Group::meet(int rank, Buffer buffer) {
  std::unique_lock lock(mutex_);
  const auto check_alive = [&] { check(!aborted_, "rank {} of {} stopped: {}", rank, world(), cause_); };
  check_alive();
  buffers_[size_t(rank)] = buffer;
  if (++arrived_ == world()) {
    arrived_ = 0;
    ++met_;
    changed_.notify_all();
  } else {
    // A meeting that completed counts even if the group is aborted right after: the others are already at
    // work.
    const uint64_t before = met_;
    changed_.wait(lock, [&] { return met_ != before || aborted_; });
    if (met_ == before) check_alive();
  }
  return buffers_;
}

void Group::leave() {
  std::unique_lock lock(mutex_);
  if (++left_ == world()) {
    left_ = 0;
    ++finished_;
    changed_.notify_all();
  } else {
    changed_.wait(lock, [this, before = finished_] { return finished_ != before; });
  }
}

void Group::abort(const char* cause) noexcept {
  const std::lock_guard lock(mutex_);
  if (!aborted_) {
    aborted_ = true;
    try {
      cause_ = cause;
    } catch (const std::exception&) {  // no memory for the text: the ranks stop without it
    }
  }
  changed_.notify_all();
}

void connect(std::span<DeviceContext* const> ranks) {
  for (const DeviceContext* context : ranks) check(!context->group, "connect: a rank is in a group already");
  if (ranks.size() < 2) return;
  const auto group = std::make_shared<Group>(int(ranks.size()));
  for (size_t rank = 0; rank < ranks.size(); ++rank) {
    ranks[rank]->group = group;
    ranks[rank]->rank = int(rank);
  }
}

void all_reduce(DeviceContext& context, Half* x, int64_t count) {
  if (!context.group) return;
  const int world = context.group->world();
  const auto buffers = context.group->meet(context.rank, {x, 1, count});
  const bool same =
      std::all_of(buffers.begin(), buffers.end(), [&](const auto& rank) { return rank.cols == count; });
  // Rank r sums share r, which only it touches, and writes it to all ranks. Shares end at cache lines.
  constexpr int64_t kLine = 32;
  const int64_t lines = same ? (count + kLine - 1) / kLine : 0;
  const int64_t begin = lines * context.rank / world * kLine;
  const int64_t end = std::min(count, lines * (context.rank + 1) / world * kLine);
  for (int64_t i = begin; i < end; ++i) {
    float sum = 0;
    for (const Group::Buffer& rank : buffers) sum += to_float(static_cast<const Half*>(rank.data)[i]);
    const Half rounded = to_half(sum);
    for (const Group::Buffer& rank : buffers) static_cast<Half*>(rank.data)[i] = rounded;
  }
  context.group->leave();
  check(same, "all_reduce: rank {} of {} has {} elements, another has more or fewer", context.rank, world,
        count);
}

void all_gather_cols(DeviceContext& context, const float* shard, int n, int64_t cols, float* out,
                     int64_t total) {
  Group* group = context.group.get();
  const Group::Buffer mine{const_cast<float*>(shard), n, cols};  // only read
  const auto buffers = group ? group->meet(context.rank, mine) : std::span(&mine, 1);
  int64_t columns = 0;
  bool same = true;
  for (const Group::Buffer& rank : buffers) {
    same = same && rank.rows == n;
    columns += rank.cols;
  }
  if (same && columns == total) {
    for (int64_t column = 0; const Group::Buffer& rank : buffers) {
      const float* source = static_cast<const float*>(rank.data);
      for (int64_t i = 0; i < n; ++i)
        std::copy_n(source + i * rank.cols, rank.cols, out + i * total + column);
      column += rank.cols;
    }
  }
  if (group) group->leave();
  check(same, "all_gather_cols: rank {} has {} rows, another has more or fewer", context.rank, n);
  check(columns == total, "all_gather_cols: the ranks have {} columns together, {} are expected", columns,
        total);
}

void abort_group(DeviceContext& context, const char* cause) noexcept {
  if (context.group) context.group->abort(cause);
}

}  // namespace spinfer::cpu
