// Strip streams: the device layout of a TCA-BME matrix for the Hopper SpMM. The same bits in another order,
// numerically lossless.
//
// A strip is 32 rows, two tiers of 16; a block is the strip's next 64 columns (four TCTiles a tier). In
// mma.m16n8k16 and wgmma lane l of a warp owns 8 weights of every TCTile: two neighbours (rows l/4, columns
// 2·(l%4)…) in each of its four BitmapTiles. All that one lane owns of a tier in a chunk is one stream: its
// nonzeros, as halves, in the order of its mask's bits. A chunk is a run of at most kMaxChunkBlocks blocks; a
// strip's blocks are dealt evenly to `chunks` chunks.
//
// Rows       Of strip s: 32·s … +32, the upper 16 are tier 0. In a paired matrix (two stacked halves: the
//            gate and the up projection of a gated MLP) tier 0 is rows 16·s … +16 of the upper half, tier 1
//            the same of the lower, so that a strip's sums have both factors of a product. All else is the
//            same.
// Values     Per strip one array of rows of 64 words, a word per track: bank = track modulo 32 whatever row
//            each lane is at. At the start of a chunk streams are dealt anew to tracks: the longer tier takes
//            the 32 tracks that are behind, in each tier the longest stream takes the track that ends first,
//            so that tracks stay level; each goes on where its track ended. Neighbouring chunks share the few
//            rows in between, a strip ends almost flat, nothing is padded in between.
// Records    One per chunk: ChunkHead, then uint32 [blocks][32 lanes][2 tiers], the masks (arrange_mask).
// Pieces     16 rows. The SpMM kernel keeps a ring of kRingPieces of them; the head says when one is needed
//            first and last, so that pieces come and go inside a chunk.
// Full       A nibble (four weights, two registers) with four nonzeros never begins at an odd half, so two
// nibbles    words hold any nibble: where one would, its predecessor is given an explicit zero in one of its
//            free bits; the first of a chunk begins a half later.
//
// Over the canonical bytes (random masks, 50 %, 512 columns a chunk): explicit zeros +1.3 %, heads +0.8 %,
// group offsets −0.1 %; the end of a strip leaves some six rows' worth of its tracks empty.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/format/tca_bme.h"

namespace spinfer {

inline constexpr int kTierRows = 16;
inline constexpr int kStripTiers = 2;
inline constexpr int kStripRows = kStripTiers * kTierRows;
inline constexpr int kStripLanes = 32;
inline constexpr int kStripTracks = kStripTiers * kStripLanes;
inline constexpr int kBlockColumns = 64;
inline constexpr int kNibblesPerBlock = 8;
inline constexpr int kMaxChunkBlocks = 8;
inline constexpr int kTrackRowBytes = kStripTracks * 4;  ///< a row of values
inline constexpr int kMaskRowBytes = kStripTracks * 4;   ///< a block's masks
inline constexpr int kPieceRows = 16;
inline constexpr int kPieceBytes = kPieceRows * kTrackRowBytes;
inline constexpr int kRingPieces = 4;
/// Behind the last strip's rows: its last piece may begin a row behind them, and a row more is copied with
/// the ring's last piece.
inline constexpr int kSlackRows = kPieceRows + 2;
inline constexpr int kRingRows = kRingPieces * kPieceRows;
/// Halves that a track may be behind the first one when a chunk begins; more becomes a hole. With it a chunk
/// of one block always fits the ring: 15 + 24 + 1 + 16 + 2 rows.
inline constexpr int kMaxLag = 48;

/// Before a chunk's masks. Rows and pieces are counted from the strip's first row.
struct alignas(16) ChunkHead {
  uint16_t start[kStripLanes][kStripTiers];  ///< chunk_start, halves counted from the first piece
  uint32_t first_row;  ///< that a stream begins in; piece first_row / 16 is the first needed
  uint16_t rows;       ///< from there through the last that a stream ends in
  uint8_t blocks;      ///< of the chunk
  uint8_t waits;       ///< low nibble: pieces that block 0 needs and no chunk before; high: pieces from
                       ///< the first on that earlier chunks need too
  uint8_t events[kMaxChunkBlocks];  ///< low nibble: more pieces the next block needs; high: of no use after
                                    ///< this one
};
static_assert(sizeof(ChunkHead) == 144);

/// Pieces of a strip that the chunks before this one need.
constexpr uint32_t pieces_before(const ChunkHead& head) {
  return head.first_row / kPieceRows + (head.waits >> 4);
}
/// A head and the masks behind it.
constexpr int chunk_record_bytes(int blocks) {
  return int(sizeof(ChunkHead)) + blocks * kMaskRowBytes;
}

/// Bank << 11 | first half << 4 | which 32 tracks.
constexpr uint32_t chunk_start(int track, int half) {
  return uint32_t(track % kStripLanes) << 11 | uint32_t(half) << 4 | uint32_t(track / kStripLanes);
}
constexpr int start_track(uint32_t start) {
  return int(start >> 11 | (start & 1u) << 5);
}
/// In sixteenths of a half, as decoders count.
constexpr uint32_t start_position(uint32_t start) {
  return start & 0x7f0u;
}

/// Where a strip's rows lie.
struct StripPlace {
  uint32_t row;     ///< its first, among all strips' rows
  uint32_t pieces;  ///< it needs; the last may reach into what follows
};

/// How a matrix is cut. Blocks [block_begin(c), block_begin(c + 1)) of each strip are chunk c.
struct StripShape {
  int64_t m = 0;        ///< true rows
  int64_t k = 0;        ///< true columns
  int chunks = 1;       ///< per strip, in [1, blocks()]
  bool paired = false;  ///< tiers are of the upper and of the lower half; only if can_pair(m)

  /// Whether half of m rows are whole strips.
  static constexpr bool can_pair(int64_t m) { return m > 0 && m % (2 * kStripRows) == 0; }

  constexpr int64_t strips() const { return padded(m) / kStripRows; }
  /// First row of a tier in the matrix.
  constexpr int64_t tier_row(int64_t strip, int tier) const {
    return strip * (paired ? kTierRows : kStripRows) + (tier == 0 ? 0 : paired ? m / 2 : kTierRows);
  }
  constexpr int blocks() const { return int(padded(k) / kBlockColumns); }
  constexpr int block_begin(int chunk) const { return int(int64_t(blocks()) * chunk / chunks); }
  constexpr int chunk_blocks(int chunk) const { return block_begin(chunk + 1) - block_begin(chunk); }
  constexpr int max_chunk_blocks() const { return (blocks() + chunks - 1) / chunks; }
  /// Bytes of a strip's records, and where a chunk's begins in them.
  constexpr int64_t record_bytes() const { return record_begin(chunks); }
  constexpr int64_t record_begin(int chunk) const {
    return int64_t(chunk) * int64_t(sizeof(ChunkHead)) + int64_t(block_begin(chunk)) * kMaskRowBytes;
  }
};

/// A matrix in this layout somewhere in memory (host or device); owns nothing.
struct StripStreamView {
  StripShape shape;
  const uint8_t* records = nullptr;    ///< [strips][record_bytes()], 16-byte aligned
  const StripPlace* places = nullptr;  ///< [strips]
  const uint8_t* values = nullptr;     ///< [rows][64] words, kSlackRows more rows behind them
  int64_t rows = 0;                    ///< all strips'
  int max_chunk_rows = 0;              ///< largest ChunkHead::rows

  constexpr int64_t bytes() const {
    return shape.strips() * (shape.record_bytes() + int64_t(sizeof(StripPlace))) + rows * kTrackRowBytes;
  }
};

/// The lane's weights of one block of a tier: nibble 2t+h is TCTile t, registers a[2h] (low two bits) and
/// a[2h+1]; `bitmaps` are the tier's 16 BitmapTiles of the block, as in the GroupTile.
constexpr uint32_t lane_mask(const uint64_t* bitmaps, int lane) {
  uint32_t mask = 0;
  for (int i = 0; i < 16; ++i) mask |= uint32_t(bitmaps[i] >> (2 * lane) & 3u) << (2 * i);
  return mask;
}

/// A block's mask with the explicit zeros' bits set. `half` is where the stream stands before it, of which
/// only the parity matters; `next` is the natural mask of the chunk's next block, or 0.
constexpr uint32_t mask_with_zeros(int half, uint32_t mask, uint32_t next) {
  uint32_t result = mask;
  for (int j = 0; j < kNibblesPerBlock; ++j) {
    const uint32_t nibble = mask >> (4 * j) & 15u;
    const uint32_t after = j + 1 < kNibblesPerBlock ? mask >> (4 * j + 4) & 15u : next & 15u;
    half += int((nibble & 1) + (nibble >> 1 & 1) + (nibble >> 2 & 1) + (nibble >> 3));
    if (after == 15u && half & 1) {
      const uint32_t free = ~nibble & 15u;  // not none: after a full nibble `half` is even
      result |= (free & (0u - free)) << (4 * j);
      ++half;
    }
  }
  return result;
}

/// A mask word as it is stored: byte i has nibble i in its low half and nibble 4 + i in its high one, so that
/// a shift and a mask give half a block (two tiles), a nibble a byte.
constexpr uint32_t arrange_mask(uint32_t mask) {
  uint32_t word = 0;
  for (int j = 0; j < kNibblesPerBlock; ++j) word |= (mask >> (4 * j) & 15u) << (8 * (j % 4) + 4 * (j / 4));
  return word;
}
/// The nibbles of half 0 or 1 of a block, one a byte, of a stored mask.
constexpr uint32_t mask_nibbles(uint32_t word, int half) {
  return (half ? word >> 4 : word) & 0x0f0f0f0fu;
}
/// What a nibble (four weights, two registers) means to the decoders. With v01 and v23 the next four values
/// of the stream and `last` = v23 without its upper half unless the nibble is full, a register is prmt(v01,
/// last, selectors).
struct alignas(8) NibbleEntry {
  uint32_t first;   ///< selectors of the first register; high half all ones for a full nibble, else zero
  uint32_t second;  ///< selectors of the second register; high half: sixteenths of a half it takes
};
/// A zero is byte 7, which is none only where the nibble has four values.
constexpr NibbleEntry nibble_entry(uint32_t nibble) {
  uint32_t selectors = 0, count = 0;
  for (uint32_t i = 0; i < 4; ++i) {
    const bool set = nibble >> i & 1;
    selectors |= (set ? (2 * count + 1) << 4 | 2 * count : 0x77u) << (8 * i);
    count += set;
  }
  return {(selectors & 0xffffu) | (count == 4 ? 0xffff0000u : 0u), selectors >> 16 | 16 * count << 16};
}

/// A matrix in this layout in host memory.
struct StripStreamHost {
  StripShape shape;
  std::vector<uint8_t> records;
  std::vector<StripPlace> places;
  std::vector<uint8_t> values;
  int64_t rows = 0;
  int max_chunk_rows = 0;
  bool fits_ring = true;  ///< else some chunk is too uneven for the SpMM kernel: cut finer

  StripStreamView view() const {
    return {shape, records.data(), places.data(), values.data(), rows, max_chunk_rows};
  }
};

/// The specification of the layout: what the GPU builder is tested against. Throws `Error` if `chunks` is
/// illegal or the matrix cannot be paired.
StripStreamHost make_strip_stream(const TcaBmeView& matrix, int chunks, bool paired = false);

/// Decodes to [m][k] with the arithmetic of the device decoder, step by step, and follows the pieces through
/// the ring. Throws `Error` if a window reads a row whose piece is not there.
std::vector<Half> decode_strip_stream(const StripStreamView& stream);

}  // namespace spinfer
