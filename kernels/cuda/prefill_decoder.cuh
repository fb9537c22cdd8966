// A warp's way through a chunk of its tier of a strip, for the kernels of many tokens: half a block (two
// TCTiles) at a time, as wgmma's A registers. NibbleDecoder for one stream.
#pragma once

#include <cstddef>

#include "kernels/cuda/nibble_decoder.cuh"

namespace spinfer::cuda {

/// Half a block is on its way from shared memory while the half before is multiplied. Rows are taken modulo
/// kRows (a power of two), the row behind the last must repeat the first.
template <int kRows>
class TierReader {
 public:
  /// The table must be 256-byte aligned.
  __device__ TierReader(const NibbleTable& table, int lane, int tier)
      : entries_(ptx::shared_address(table.entries)),
        advance_(NibbleTable::load(ptx::shared_address(&table.advance))),
        stream_(uint32_t(lane * kStripTiers + tier)) {}
  /// Goes to the first block of the chunk whose record lies at shared address `record`; its rows lie at
  /// `rows`, its first piece's first one at `position` (StreamPlace) of these.
  __device__ void enter(uint32_t record, uint32_t rows, uint32_t position) {
    uint32_t start;
    asm volatile("ld.shared.u16 %0, [%1];" : "=r"(start) : "r"(record + 2 * stream_));
    masks_ = record + uint32_t(sizeof(ChunkHead)) + 4 * stream_;
    mask_ = load_shared(masks_);
    place_ = {rows + uint32_t(4 * start_track(start)), position + start_position(start)};
  }
  /// Behind the last chunk: loads read what is there and move nothing.
  __device__ void finish() { mask_ = 0; }

  /// Starts to load the table entries of half kHalf of a block; behind the second half stands the next block.
  /// After a chunk's last block what comes is of no use.
  template <int kHalf>
  __device__ void load_entries() {
    // 8 · mask_nibbles: a byte of offsets below the table's address, rather than IDP as in NibbleDecoder:
    // fewer registers are read, for which the tensor cores wait.
    const uint32_t offsets = (kHalf ? mask_ >> 1 : mask_ << 3) & 0x78787878u;
#pragma unroll
    for (uint32_t i = 0; i < 4; ++i)
      entries_of_[kHalf][i] = load_entry(permute_bytes(offsets, entries_, 0x7650 + i));
    if (kHalf == 1) {
      masks_ += kMaskRowBytes;
      mask_ = load_shared(masks_);
    }
  }
  /// Starts to load the values that half kHalf's entries stand for. Halves must come in order.
  template <int kHalf>
  __device__ void load_values() {
#pragma unroll
    for (int i = 0; i < 4; ++i) windows_[i].load<kRows>(entries_of_[kHalf][i], advance_, place_);
  }
  /// The registers of half kHalf: a[4t] … a[4t + 3] are tile t's. Behind the second half all of the block's
  /// values have been read.
  template <int kHalf>
  __device__ void assemble(uint32_t* a) const {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      NibbleValues values;
      if (kHalf == 0) values.take(windows_[i]);
      if (kHalf == 1) values.take_now(windows_[i]);
      values.assemble(a + 2 * i);
    }
  }

 private:
  uint32_t entries_;  ///< shared address
  uint32_t advance_;
  uint32_t stream_;     ///< among the masks of a block and the starts of a head
  uint32_t masks_ = 0;  ///< shared address of the lane's mask of the block
  uint32_t mask_ = 0;
  StreamPlace place_{};
  NibbleEntry entries_of_[2][4];  ///< of each half: the next one's come while this one's are in use
  NibbleWindow windows_[4];
};

}  // namespace spinfer::cuda
