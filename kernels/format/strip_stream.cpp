#include "kernels/format/strip_stream.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "kernels/check.h"

namespace spinfer {
namespace {

/// One chunk's streams, one per lane.
struct ChunkStreams {
  std::array<std::vector<uint32_t>, kStripLanes> masks;
  std::array<std::vector<uint16_t>, kStripLanes> values;
};

/// Reads the bits and values of blocks [begin, end) of a strip.
ChunkStreams read_chunk(const TcaBmeView& w, int64_t strip, int begin, int end) {
  ChunkStreams streams;
  const int64_t tile_row = strip / 4 * group_tiles(w.k);
  const int first = int(strip % 4) * 16;  // the strip's bitmaps in each GroupTile
  for (int block = begin; block < end; ++block) {
    const uint64_t* tile = w.bitmaps + (tile_row + block) * kBitmapsPerGroupTile;
    int64_t value = w.offset(tile_row + block);
    for (int i = 0; i < first; ++i) value += std::popcount(tile[i]);
    int64_t bitmap_value[16];
    for (int i = 0; i < 16; ++i) {
      bitmap_value[i] = value;
      value += std::popcount(tile[first + i]);
    }
    for (int lane = 0; lane < kStripLanes; ++lane) {
      const uint32_t mask = lane_mask(tile + first, lane);
      auto& stream = streams.values[size_t(lane)];
      streams.masks[size_t(lane)].push_back(mask);
      for (int j = 0; j < kNibblesPerBlock; ++j) {
        if ((mask >> (4 * j) & 15u) == 15u && stream.size() % 2) stream.push_back(0);
        for (int i = 2 * j; i < 2 * j + 2; ++i) {
          const uint64_t below = tile[first + i] & ((uint64_t{1} << (2 * lane)) - 1);
          const Half* next = w.values + bitmap_value[i] + std::popcount(below);
          for (int bit = 2 * i; bit < 2 * i + 2; ++bit) {
            if (mask >> bit & 1) stream.push_back((next++)->bits);
          }
        }
      }
    }
  }
  return streams;
}

size_t words_of(const std::vector<uint16_t>& halves) {
  return (halves.size() + 1) / 2;
}

void put_word(std::vector<uint8_t>& out, uint32_t word) {
  for (int i = 0; i < 4; ++i) out.push_back(uint8_t(word >> (8 * i)));
}

/// Appends the chunk to `out` and says how high it is.
ChunkHeights append_chunk(const ChunkStreams& streams, std::vector<uint8_t>& out) {
  std::array<int, kStripLanes> lane_of{};
  for (int i = 0; i < kStripLanes; ++i) lane_of[size_t(i)] = i;
  std::stable_sort(lane_of.begin(), lane_of.end(), [&](int a, int b) {
    return words_of(streams.values[size_t(a)]) > words_of(streams.values[size_t(b)]);
  });
  ChunkHeights height{};
  for (int q = 0; q < kStripPairs; ++q) {
    height.row[q] = uint8_t(words_of(streams.values[size_t(lane_of[size_t(2 * q)])]));
  }
  std::array<uint8_t, kStripLanes> rank{};
  for (int i = 0; i < kStripLanes; ++i) rank[size_t(lane_of[size_t(i)])] = uint8_t(i);
  out.insert(out.end(), rank.begin(), rank.end());
  for (size_t block = 0; block < streams.masks[0].size(); ++block) {
    for (const auto& masks : streams.masks) put_word(out, masks[block]);
  }
  const auto word = [&](int r, int i) {
    const auto& halves = streams.values[size_t(lane_of[size_t(i)])];
    const auto half = [&](size_t at) { return at < halves.size() ? uint32_t(halves[at]) : 0u; };
    return half(2 * size_t(r)) | half(2 * size_t(r) + 1) << 16;
  };
  const int rows = height.row[kStripPairs - 1];
  for (int r = 0; r < rows; ++r) {
    for (int i = 0; i < kStripLanes; ++i) put_word(out, word(r, i));
  }
  for (int q = 0; q < kStripPairs - 1; ++q) {
    for (int r = rows; r < height.row[q]; ++r) {
      for (int i = 2 * q; i < 2 * q + 2; ++i) put_word(out, word(r, i));
    }
  }
  while (out.size() % kChunkAlign) out.push_back(0);
  return height;
}

/// A chunk as the kernel has it in shared memory: every row 32 words wide, two spare rows that reads may
/// touch.
std::vector<uint32_t> unfold(const StripStreamView& s, int64_t entry, int blocks) {
  const ChunkHeights& height = s.heights[entry];
  const int rows = height.row[kStripPairs - 1];
  const size_t whole = size_t(kChunkRankBytes + (blocks + rows) * kChunkRowBytes);
  std::vector<uint32_t> slot(size_t(unfolded_chunk_bytes(blocks, height.row[0] + 2)) / 4);
  const uint8_t* from = s.data + int64_t(s.offsets[entry]) * kChunkAlign;
  std::memcpy(slot.data(), from, whole);
  from += whole;
  for (int q = 0; q < kStripPairs - 1; ++q) {
    for (int r = rows; r < height.row[q]; ++r, from += 8) {
      std::memcpy(&slot[size_t(kChunkRankBytes + (blocks + r) * kChunkRowBytes) / 4 + size_t(2 * q)], from,
                  8);
    }
  }
  return slot;
}

uint32_t permute_bytes(uint32_t low, uint32_t high, uint32_t selectors) {
  const uint64_t bytes = uint64_t(high) << 32 | low;
  uint32_t result = 0;
  for (int i = 0; i < 4; ++i) result |= uint32_t(bytes >> (8 * (selectors >> (4 * i) & 7)) & 255u) << (8 * i);
  return result;
}

/// The decoder's step (kernels/cuda/strip_decoder.cuh) in plain C++. `position` is in sixteenths of a half.
void decode_nibble(const uint32_t* column, uint32_t nibble, uint32_t& position, uint32_t (&a)[2]) {
  const uint32_t count = uint32_t(std::popcount(nibble));
  const uint32_t bumped = position + 4 * count;
  position = bumped & (position | ~31u);
  const uint32_t row = position / 32;
  const uint32_t w0 = column[row * kStripLanes], w1 = column[(row + 1) * kStripLanes];
  const uint32_t shift = position & 31u;
  const uint32_t v01 = uint32_t((uint64_t(w1) << 32 | w0) >> shift);
  const uint32_t v23 = uint32_t((w1 >> shift) & ((uint64_t{1} << (8 * count)) - 1));
  const uint32_t selectors = nibble_selectors(nibble);
  a[0] = permute_bytes(v01, v23, selectors);
  a[1] = permute_bytes(v01, v23, selectors >> 16);
  position += 16 * count;
}

void decode_chunk(const StripStreamView& s, int64_t strip, int chunk, Half* dense) {
  const int blocks = s.shape.chunk_blocks(chunk);
  const std::vector<uint32_t> slot = unfold(s, strip * s.shape.chunks + chunk, blocks);
  for (int lane = 0; lane < kStripLanes; ++lane) {
    const uint32_t rank = slot[size_t(lane / 4)] >> (8 * (lane % 4)) & 255u;
    const uint32_t* column = &slot[size_t(kChunkRankBytes + blocks * kChunkRowBytes) / 4 + rank];
    uint32_t position = 0;
    for (int block = 0; block < blocks; ++block) {
      const uint32_t mask = slot[size_t(kChunkRankBytes + block * kChunkRowBytes) / 4 + size_t(lane)];
      for (int j = 0; j < kNibblesPerBlock; ++j) {
        uint32_t a[2];
        decode_nibble(column, mask >> (4 * j) & 15u, position, a);
        for (int i = 0; i < 4; ++i) {
          const int64_t row = strip * kStripRows + i / 2 * 8 + lane / 4;
          const int64_t col = int64_t(s.shape.block_begin(chunk) + block) * kBlockColumns + j / 2 * kTcTile +
                              j % 2 * 8 + lane % 4 * 2 + i % 2;
          const Half value{uint16_t(a[i / 2] >> (16 * (i % 2)))};
          if (row < s.shape.m && col < s.shape.k) dense[row * s.shape.k + col] = value;
        }
      }
    }
  }
}

}  // namespace

StripStreamHost make_strip_stream(const TcaBmeView& matrix, int chunks) {
  StripStreamHost out;
  out.shape = {matrix.m, matrix.k, chunks};
  check(chunks >= 1 && chunks <= out.shape.blocks() && out.shape.max_chunk_blocks() <= kMaxChunkBlocks,
        "strip streams of {}×{}: {} chunks, legal are {} to {}", matrix.m, matrix.k, chunks,
        (out.shape.blocks() + kMaxChunkBlocks - 1) / kMaxChunkBlocks, out.shape.blocks());
  for (int64_t strip = 0; strip < out.shape.strips(); ++strip) {
    for (int chunk = 0; chunk < chunks; ++chunk) {
      const int begin = out.shape.block_begin(chunk), end = out.shape.block_begin(chunk + 1);
      check(int64_t(out.data.size()) < int64_t{kChunkAlign} << 32,
            "strip streams of {}×{}: more than 64 GiB of values", matrix.m, matrix.k);
      out.offsets.push_back(uint32_t(out.data.size() / kChunkAlign));
      out.heights.push_back(append_chunk(read_chunk(matrix, strip, begin, end), out.data));
      const int height = out.heights.back().row[0];
      out.max_height = std::max(out.max_height, height);
      out.max_unfolded_bytes = std::max(out.max_unfolded_bytes, unfolded_chunk_bytes(end - begin, height));
    }
  }
  return out;
}

std::vector<Half> decode_strip_stream(const StripStreamView& stream) {
  std::vector<Half> dense(size_t(stream.shape.m * stream.shape.k), Half{0x7e00});
  for (int64_t strip = 0; strip < stream.shape.strips(); ++strip) {
    for (int chunk = 0; chunk < stream.shape.chunks; ++chunk)
      decode_chunk(stream, strip, chunk, dense.data());
  }
  return dense;
}

}  // namespace spinfer
