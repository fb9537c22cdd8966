// How the thread blocks of the Hopper SpMM (spmm_stream.cu) divide the work, and who adds up whose sums.
// Plain integers, the same on host and device: tested without a GPU.
//
// Units are numbered team by team, chunk by chunk; block b has the run [first_unit(b), first_unit(b + 1)). A
// team's owners are the blocks that have units of it. If there are several their sums meet in global memory.
// What a block has of a strip has two places there: 2·block for a team that other blocks began before it,
// 2·block + 1 for one that it begins inside its run. (A team begun with the run is at 2·block.)
//
// Runs differ by a unit at most, and the longer ones come first. Blocks are placed in their order, on SMs as
// the launch before leaves them: the last get theirs when that launch is over, and then their first pieces
// while all others ask for theirs.
#pragma once

#include <cstdint>

namespace spinfer::cuda {

/// Divides by a number known to the host: a division takes a GPU some 150 clocks, and the start of a launch
/// has several in a row. `magic` is 2^64 / divisor rounded up, exact for all dividends below 2^32; 0 for 1.
struct FastDivisor {
  uint64_t magic;

  static constexpr FastDivisor of(int64_t divisor) {
    return {divisor > 1 ? ~uint64_t{0} / uint64_t(divisor) + 1 : 0};
  }
  constexpr uint32_t divide(uint32_t dividend) const {
    __extension__ using Wide = unsigned __int128;
    return magic ? uint32_t(Wide(magic) * dividend >> 64) : dividend;
  }
};

/// The work of one launch. 1 ≤ units < 2^31.
struct SpmmSplit {
  int units;   ///< teams · chunks
  int chunks;  ///< of a strip
  int grid;    ///< thread blocks, at most `units`
  int run;     ///< units of a block,
  int longer;  ///< and one more for so many blocks from the first on
  FastDivisor by_run, by_longer_run, by_chunks;

  static constexpr SpmmSplit of(int64_t units, int chunks, int grid) {
    const int64_t run = units / grid;
    return {int(units),
            chunks,
            grid,
            int(run),
            int(units % grid),
            FastDivisor::of(run),
            FastDivisor::of(run + 1),
            FastDivisor::of(chunks)};
  }
  constexpr int first_unit(int block) const { return block * run + (block < longer ? block : longer); }
  /// The block whose run holds `unit`.
  constexpr int block_of(int unit) const {
    const bool in_longer = unit < first_unit(longer);
    return int(in_longer ? by_longer_run.divide(uint32_t(unit)) : by_run.divide(uint32_t(unit - longer)));
  }
  constexpr int team_of(int unit) const { return int(by_chunks.divide(uint32_t(unit))); }
};

/// A block's part in adding up the last team of its run. The team's last owner has none: usually it goes on
/// with another team, so its sums are there early. The others end their runs with the team, at about the same
/// time: each adds up a share of every strip's items over all owners.
struct TeamShare {
  int owners;        ///< blocks that have units of the team; 1: nobody else's sums are needed
  int own_place;     ///< this block's sums
  int first_place;   ///< the first owner's
  int other_places;  ///< the second's; the next are 2 on
  int group;         ///< the first group of items this block adds up; then group + step, …
  int step;
  int pairs;      ///< 1: groups are two items; 0: one
  int turns;      ///< items this block adds up
  int entries;    ///< partial sums to add up: for each of its items one an owner
  int by_owners;  ///< 2^16 / owners rounded up: `turn` is exact while entries · owners < 2^16

  /// Of partial sum `entry`: the how-manieth of this block's items it is of.
  constexpr int turn(int entry) const { return entry * by_owners >> 16; }
  constexpr int item(int turn) const { return (((turn >> pairs) * step + group) << pairs) + (turn & pairs); }
  /// Where that owner's sums are, in the order of the blocks from 0 on.
  constexpr int place(int owner) const { return owner == 0 ? first_place : other_places + 2 * (owner - 1); }

  /// `items`: pieces that a strip's sums are dealt in, one by one or two by two. Of few tokens not all owners
  /// have a share: their SMs take in the next launch's weights meanwhile.
  static constexpr TeamShare of(const SpmmSplit& s, int block, int items, bool in_pairs) {
    const int begin = s.first_unit(block), end = s.first_unit(block + 1), team = s.team_of(end - 1);
    const int team_begin = team * s.chunks, team_end = team_begin + s.chunks;
    const int first = begin > team_begin ? s.block_of(team_begin) : block;
    const int last = end < team_end ? s.block_of(team_end - 1) : block;
    TeamShare t{};
    t.owners = last - first + 1;
    t.step = t.owners > 1 ? t.owners - 1 : 1;
    t.first_place = 2 * first + int(s.first_unit(first) < team_begin);
    t.other_places = 2 * (first + 1);
    t.own_place = block == first ? t.first_place : 2 * block;
    t.pairs = int(in_pairs);
    const int groups = items >> t.pairs;
    t.group = block == last && t.owners > 1 ? groups : block - first;
    t.turns = t.group < groups ? (groups - t.group + t.step - 1) / t.step << t.pairs : 0;
    t.entries = t.turns * t.owners;
    t.by_owners = (65536 + t.owners - 1) / t.owners;
    return t;
  }
};

}  // namespace spinfer::cuda
