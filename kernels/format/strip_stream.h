// Strip streams: the device layout of a TCA-BME matrix for the Hopper SpMM. The same bits in another order,
// lossless.
//
// A strip is 16 rows; a block is the strip's next 64 columns (four TCTiles). In mma.m16n8k16 and wgmma lane l
// of a warp owns 8 weights of every TCTile: two neighbours (rows l/4, columns 2·(l%4)…) in each of its four
// BitmapTiles. All that one lane owns is one stream:
//   mask word   one uint32 per block: nibble 2t+h is TCTile t, registers a[2h] (low two bits) and a[2h+1]
//   values      the lane's nonzeros in the order of those bits, as halves. Where a full nibble (four
//   nonzeros) would
//               begin at an odd half one zero is put before it, so that two 32-bit words hold any nibble
// A chunk is a run of blocks of one strip, at most kMaxChunkBlocks; every stream begins afresh in it. In
// memory it is
//   ranks    uint8  [32]              column of each lane below: lanes sorted by falling stream length, ties
//   by lane masks    uint32 [blocks][32]      by lane rows     uint32 [height[7]][32]   word r of every
//   lane's values, by rank: bank = rank, whatever r each lane is at columns  uint32 [7][…][4]         for q =
//   0 … 6 the words of ranks 4q … 4q+3 in rows height[7] … height[q]−1
// where height[q] is the longest stream of ranks 4q … 4q+3, in words. What a stream does not fill is zero.
// The strip's blocks are dealt evenly to `chunks` chunks; a directory entry says where each begins. Chunks
// are ordered by strip, then column, so rows of 16 and runs of chunks can be cut out without touching the
// data.
//
// Over the canonical bytes (50 %, 320 columns a chunk): padding zeros +1.1 %, heights rounded to four lanes
// +1.0 %, ranks and directory +0.8 %, group offsets −0.4 %.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "kernels/format/tca_bme.h"

namespace spinfer {

inline constexpr int kStripRows = 16;
inline constexpr int kStripLanes = 32;
inline constexpr int kStripPairs = 16;  ///< columns of 8 bytes in a row of 32 words
inline constexpr int kBlockColumns = 64;
inline constexpr int kNibblesPerBlock = 8;
inline constexpr int kMaxChunkBlocks = 15;  ///< heights are bytes: at most 16 rows a block
inline constexpr int kChunkRankBytes = 32;
inline constexpr int kChunkRowBytes = 128;

/// How a chunk's streams end: rows of each 8-byte column, falling.
struct alignas(16) ChunkHeights {
  uint8_t row[kStripPairs];
};
static_assert(sizeof(ChunkHeights) == 16);
inline constexpr int kChunkAlign = 16;
inline constexpr int kChunkDirectoryBytes = 4 + 16;

/// How a matrix is cut. Blocks [block_begin(c), block_begin(c + 1)) of each strip are chunk c.
struct StripShape {
  int64_t m = 0;   ///< true rows
  int64_t k = 0;   ///< true columns
  int chunks = 1;  ///< per strip, in [1, blocks()]

  constexpr int64_t strips() const { return padded(m) / kStripRows; }
  constexpr int blocks() const { return int(padded(k) / kBlockColumns); }
  constexpr int block_begin(int chunk) const { return int(int64_t(blocks()) * chunk / chunks); }
  constexpr int chunk_blocks(int chunk) const { return block_begin(chunk + 1) - block_begin(chunk); }
  constexpr int max_chunk_blocks() const { return (blocks() + chunks - 1) / chunks; }
  constexpr int64_t entries() const { return strips() * chunks; }
};

/// Bytes of a chunk of `blocks` blocks: in memory, and unfolded (all columns as high as the first) in shared
/// memory.
constexpr int64_t chunk_bytes(int blocks, const ChunkHeights& height) {
  int64_t pairs = 0;
  for (int q = 0; q < kStripPairs; ++q) pairs += height.row[q];
  const int64_t bytes = kChunkRankBytes + int64_t(blocks) * kChunkRowBytes + pairs * 8;
  return (bytes + kChunkAlign - 1) / kChunkAlign * kChunkAlign;
}
constexpr int unfolded_chunk_bytes(int blocks, int height) {
  return kChunkRankBytes + (blocks + height) * kChunkRowBytes;
}
constexpr int max_chunk_height(int blocks) {
  return blocks * kBlockColumns / 4;
}

/// A matrix in this layout somewhere in memory (host or device); owns nothing.
struct StripStreamView {
  StripShape shape;
  const uint32_t* offsets = nullptr;      ///< [strips][chunks], where each chunk begins, in units of 16 bytes
  const ChunkHeights* heights = nullptr;  ///< [strips][chunks]
  const uint8_t* data = nullptr;          ///< 16-byte aligned
  int64_t data_bytes = 0;
  int max_height = 0;          ///< largest height of a chunk
  int max_unfolded_bytes = 0;  ///< largest unfolded_chunk_bytes

  constexpr int64_t bytes() const { return data_bytes + shape.entries() * kChunkDirectoryBytes; }
};

/// The decoder's table: byte selectors (prmt) of the two registers a nibble fills, low and high 16 bits.
/// Bytes 0 … 7 are the next four values of the stream; byte 7 is zero unless the nibble has four.
constexpr uint32_t nibble_selectors(uint32_t nibble) {
  uint32_t selectors = 0;
  uint32_t next = 0;
  for (uint32_t i = 0; i < 4; ++i) {
    const bool set = nibble >> i & 1;
    selectors |= (set ? (2 * next + 1) << 4 | 2 * next : 0x77u) << (8 * i);
    next += set;
  }
  return selectors;
}

/// The lane's mask word of one block; `bitmaps` are the strip's 16 BitmapTiles of the block, as in the
/// GroupTile.
constexpr uint32_t lane_mask(const uint64_t* bitmaps, int lane) {
  uint32_t mask = 0;
  for (int i = 0; i < 16; ++i) mask |= uint32_t(bitmaps[i] >> (2 * lane) & 3u) << (2 * i);
  return mask;
}

/// Halves of the stream after a mask word that begins at half `position`, padding zeros counted.
constexpr int advance_stream(int position, uint32_t mask) {
  for (int j = 0; j < kNibblesPerBlock; ++j) {
    const uint32_t nibble = mask >> (4 * j) & 15u;
    if (nibble == 15u) position += position & 1;
    position += int((nibble & 1) + (nibble >> 1 & 1) + (nibble >> 2 & 1) + (nibble >> 3));
  }
  return position;
}

/// A matrix in this layout in host memory.
struct StripStreamHost {
  StripShape shape;
  std::vector<uint32_t> offsets;
  std::vector<ChunkHeights> heights;
  std::vector<uint8_t> data;
  int max_height = 0;
  int max_unfolded_bytes = 0;

  StripStreamView view() const {
    return {shape,      offsets.data(),    heights.data(), data.data(), int64_t(data.size()),
            max_height, max_unfolded_bytes};
  }
};

/// The specification of the layout: what the GPU builder is tested against. Throws `Error` if `chunks` is
/// illegal.
StripStreamHost make_strip_stream(const TcaBmeView& matrix, int chunks);

/// Decodes to [m][k] with the arithmetic of the device decoder, step by step.
std::vector<Half> decode_strip_stream(const StripStreamView& stream);

}  // namespace spinfer
