#include "kernels/format/strip_stream.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <numeric>

#include "kernels/check.h"

namespace spinfer {
namespace {

/// Of the strip's streams (tier · 32 + lane), or of its tracks.
using PerStream = std::array<int, kStripTracks>;

/// One chunk's masks and nonzeros, stream by stream.
struct ChunkSource {
  std::array<std::vector<uint32_t>, kStripTracks> masks;
  std::array<std::vector<uint16_t>, kStripTracks> values;

  size_t tier_length(int tier) const {
    size_t length = 0;
    for (int lane = 0; lane < kStripLanes; ++lane) length += values[size_t(tier * kStripLanes + lane)].size();
    return length;
  }
};

/// Appends a tier's share of a block. `tile_row` counts the matrix's rows of TCTiles.
void read_block(const TcaBmeView& w, int64_t tile_row, int block, size_t first_stream, ChunkSource& source) {
  const int64_t group = tile_row / 4 * group_tiles(w.k) + block;
  const int first = int(tile_row % 4) * 16;  // the tier's bitmaps in the GroupTile
  const uint64_t* bitmaps = w.bitmaps + group * kBitmapsPerGroupTile;
  int64_t value = w.offset(group);
  for (int i = 0; i < first; ++i) value += std::popcount(bitmaps[i]);
  for (int i = first; i < first + 16; ++i) {
    for (int lane = 0; lane < kStripLanes; ++lane) {
      const uint64_t below = bitmaps[i] & ((uint64_t{1} << (2 * lane)) - 1);
      const Half* next = w.values + value + std::popcount(below);
      for (int j = 0; j < std::popcount(bitmaps[i] >> (2 * lane) & 3u); ++j)
        source.values[first_stream + size_t(lane)].push_back(next[j].bits);
    }
    value += std::popcount(bitmaps[i]);
  }
  for (int lane = 0; lane < kStripLanes; ++lane)
    source.masks[first_stream + size_t(lane)].push_back(lane_mask(bitmaps + first, lane));
}

/// Where each stream goes on. The longer tier goes to the 32 tracks that are behind; in each, the longest
/// stream goes to the track that ends first.
struct Deal {
  PerStream track, half;
  int first_row() const { return *std::min_element(half.begin(), half.end()) / 2; }
};

Deal deal_streams(const ChunkSource& source, const PerStream& track_end) {
  const auto begin = track_end.begin(), middle = begin + kStripLanes;
  const bool first_is_ahead = std::accumulate(begin, middle, 0) > std::accumulate(middle, track_end.end(), 0);
  const bool second_is_longer = source.tier_length(1) > source.tier_length(0);
  const int lowest = *std::max_element(begin, track_end.end()) - kMaxLag;
  Deal deal{};
  for (int tier = 0; tier < kStripTiers; ++tier) {
    const int tracks = tier ^ int(first_is_ahead != second_is_longer);
    std::array<size_t, kStripLanes> by_end, by_length;
    std::iota(by_end.begin(), by_end.end(), size_t(tracks * kStripLanes));
    std::iota(by_length.begin(), by_length.end(), size_t(tier * kStripLanes));
    std::stable_sort(by_end.begin(), by_end.end(),
                     [&](size_t a, size_t b) { return track_end[a] < track_end[b]; });
    std::stable_sort(by_length.begin(), by_length.end(),
                     [&](size_t a, size_t b) { return source.values[a].size() > source.values[b].size(); });
    for (size_t i = 0; i < kStripLanes; ++i) {
      int half = std::max(track_end[by_end[i]], lowest);
      if ((source.masks[by_length[i]][0] & 15u) == 15u) half += half & 1;
      deal.track[by_length[i]] = int(by_end[i]);
      deal.half[by_length[i]] = half;
    }
  }
  return deal;
}

/// Pieces that are of use from these positions on, and that blocks which end there need: windows reach a row
/// further.
int first_piece(const PerStream& half) {
  return *std::min_element(half.begin(), half.end()) / (2 * kPieceRows);
}
int pieces_until(const PerStream& half) {
  return (*std::max_element(half.begin(), half.end()) / 2 + 1) / kPieceRows + 1;
}

/// Builds one strip's records and rows.
class StripBuilder {
 public:
  StripBuilder(const TcaBmeView& w, const StripShape& shape, int64_t strip, StripStreamHost& out)
      : w_(w), shape_(shape), strip_(strip), out_(out) {}

  void build() {
    ChunkSource source = read(0);
    Deal deal = deal_streams(source, PerStream{});
    for (int chunk = 0; chunk < shape_.chunks; ++chunk) {
      ChunkHead head = start_of(deal);
      std::vector<uint32_t> masks;
      PerStream half = deal.half;
      const int used = first_piece(half), blocks = shape_.chunk_blocks(chunk);
      int used_now = used;
      head.blocks = uint8_t(blocks);
      head.waits = uint8_t((arrived_ - used) << 4);
      for (int block = 0; block < blocks; ++block) {
        append_block(source, deal, block, half, masks);
        const int needed = std::max(arrived_, pieces_until(half));
        (block == 0 ? head.waits : head.events[block - 1]) |= uint8_t(needed - arrived_);
        arrived_ = needed;
        out_.fits_ring = out_.fits_ring && arrived_ - used_now <= kRingPieces;
        if (block + 1 < blocks) {
          head.events[block] = uint8_t((first_piece(half) - used_now) << 4);
          used_now = first_piece(half);
        }
      }
      PerStream track_end;
      for (size_t i = 0; i < kStripTracks; ++i) track_end[size_t(deal.track[i])] = half[i];
      const int end = (*std::max_element(half.begin(), half.end()) + 1) / 2;
      head.rows = uint16_t(end - int(head.first_row));
      out_.max_chunk_rows = std::max(out_.max_chunk_rows, int(head.rows));
      rows_ = std::max(rows_, end);
      if (chunk + 1 < shape_.chunks) {
        source = read(chunk + 1);
        deal = deal_streams(source, track_end);
      }
      const int used_after = chunk + 1 < shape_.chunks ? first_piece(deal.half) : arrived_;
      head.events[blocks - 1] |= uint8_t(std::min(used_after - used_now, 15) << 4);
      append_record(head, masks);
    }
    values_.resize(size_t(rows_) * kStripTracks);
    const auto* bytes = reinterpret_cast<const uint8_t*>(values_.data());
    out_.places.push_back({uint32_t(out_.rows), uint32_t(arrived_)});
    out_.values.insert(out_.values.end(), bytes, bytes + values_.size() * 4);
    out_.rows += rows_;
  }

 private:
  ChunkSource read(int chunk) const {
    ChunkSource source;
    for (int block = shape_.block_begin(chunk); block < shape_.block_begin(chunk + 1); ++block) {
      for (int tier = 0; tier < kStripTiers; ++tier)
        read_block(w_, shape_.tier_row(strip_, tier) / kTcTile, block, size_t(tier * kStripLanes), source);
    }
    return source;
  }
  static ChunkHead start_of(const Deal& deal) {
    ChunkHead head{};
    head.first_row = uint32_t(deal.first_row());
    const int origin = first_piece(deal.half) * 2 * kPieceRows;
    for (size_t i = 0; i < kStripTracks; ++i)
      head.start[i % kStripLanes][i / kStripLanes] =
          uint16_t(chunk_start(deal.track[i], deal.half[i] - origin));
    return head;
  }
  /// Moves `half` on by one block of all streams.
  void append_block(ChunkSource& source, const Deal& deal, int block, PerStream& half,
                    std::vector<uint32_t>& masks) {
    const size_t first = masks.size();
    masks.resize(first + kStripTracks);
    for (size_t i = 0; i < kStripTracks; ++i) {
      const auto& own = source.masks[i];
      const uint32_t natural = own[size_t(block)];
      const uint32_t next = size_t(block) + 1 < own.size() ? own[size_t(block) + 1] : 0u;
      const uint32_t mask = mask_with_zeros(half[i], natural, next);
      auto value = source.values[i].begin();
      for (int bit = 0; bit < 32; ++bit) {
        if (!(mask >> bit & 1)) continue;
        put(deal.track[i], half[i]++, natural >> bit & 1 ? *value++ : uint16_t{0});
      }
      source.values[i].erase(source.values[i].begin(), value);
      masks[first + i % kStripLanes * kStripTiers + i / kStripLanes] = arrange_mask(mask);
    }
  }
  void put(int track, int half, uint16_t bits) {
    const size_t word = size_t(half / 2) * kStripTracks + size_t(track);
    if (values_.size() <= word) values_.resize((size_t(half / 2) + 1) * kStripTracks);
    values_[word] |= uint32_t(bits) << (16 * (half % 2));
  }
  void append_record(const ChunkHead& head, const std::vector<uint32_t>& masks) {
    const size_t at = out_.records.size(), mask_bytes = masks.size() * sizeof(uint32_t);
    out_.records.resize(at + sizeof(head) + mask_bytes);
    std::memcpy(&out_.records[at], &head, sizeof(head));
    std::memcpy(&out_.records[at + sizeof(head)], masks.data(), mask_bytes);
  }

  const TcaBmeView& w_;
  const StripShape& shape_;
  int64_t strip_;
  StripStreamHost& out_;
  std::vector<uint32_t> values_;  ///< [rows][64]
  int rows_ = 0;
  int arrived_ = 0;  ///< pieces that the blocks so far need
};

uint32_t permute_bytes(uint32_t low, uint32_t high, uint32_t selectors) {
  const uint64_t bytes = uint64_t(high) << 32 | low;
  uint32_t result = 0;
  for (int i = 0; i < 4; ++i) result |= uint32_t(bytes >> (8 * (selectors >> (4 * i) & 7)) & 255u) << (8 * i);
  return result;
}
/// The pieces of a strip that are in the ring at one time.
struct Ring {
  const uint8_t* values;  ///< the strip's
  int64_t strip;
  int first = 0, end = 0;

  uint32_t word(uint32_t row, int track) const {
    check(int(row) / kPieceRows >= first && int(row) / kPieceRows < end,
          "strip {}: row {} is read while pieces {} to {} are there", strip, row, first, end - 1);
    uint32_t word;
    std::memcpy(&word, values + int64_t(row) * kTrackRowBytes + track * 4, sizeof(word));
    return word;
  }
};

/// The decoders' step (kernels/cuda/nibble_decoder.cuh) in plain C++: one nibble of one lane.
void decode_nibble(const Ring& ring, int track, uint32_t nibble, uint32_t& position, uint32_t* a) {
  const NibbleEntry entry = nibble_entry(nibble);
  const uint32_t row = position / 32, shift = position % 32;
  const uint64_t window = uint64_t(ring.word(row + 1, track)) << 32 | ring.word(row, track);
  const auto v01 = uint32_t(window >> shift), v23 = uint32_t(window >> 32 >> shift);
  const uint32_t last = v23 & (entry.first | 0xffffu);
  a[0] = permute_bytes(v01, last, entry.first);
  a[1] = permute_bytes(v01, last, entry.second);
  position += entry.second >> 16;
}

class StripReader {
 public:
  StripReader(const StripStreamView& s, int64_t strip, Half* dense)
      : s_(s), strip_(strip), dense_(dense), ring_{rows(), strip} {}

  void read() {
    for (int chunk = 0; chunk < s_.shape.chunks; ++chunk) read_chunk(chunk);
    check(ring_.first == ring_.end && ring_.end == int(s_.places[strip_].pieces),
          "strip {}: pieces {} to {} of {} are left", strip_, ring_.first, ring_.end,
          s_.places[strip_].pieces);
  }

 private:
  const uint8_t* rows() const { return s_.values + int64_t(s_.places[strip_].row) * kTrackRowBytes; }

  void read_chunk(int chunk) {
    const uint8_t* record = s_.records + strip_ * s_.shape.record_bytes() + s_.shape.record_begin(chunk);
    ChunkHead head;
    std::memcpy(&head, record, sizeof(head));
    const uint32_t piece = head.first_row / kPieceRows;
    check(int(piece) == ring_.first && head.waits >> 4 == ring_.end - ring_.first,
          "strip {} chunk {}: begins at piece {} with {}, the ring holds {} to {}", strip_, chunk, piece,
          head.waits >> 4, ring_.first, ring_.end - 1);
    check(head.blocks == s_.shape.chunk_blocks(chunk), "strip {} chunk {}: {} blocks", strip_, chunk,
          head.blocks);
    uint32_t position[kStripLanes][kStripTiers];
    for (int i = 0; i < kStripTracks; ++i)
      position[i / 2][i % 2] = start_position(head.start[i / 2][i % 2]) + piece * kPieceRows * 32;
    ring_.end += head.waits & 15;
    for (int block = 0; block < s_.shape.chunk_blocks(chunk); ++block) {
      for (int i = 0; i < kStripTracks; ++i) {
        const int lane = i / kStripTiers, tier = i % kStripTiers;
        uint32_t word;
        std::memcpy(&word, record + sizeof(head) + block * kMaskRowBytes + i * 4, sizeof(word));
        read_block(s_.shape.block_begin(chunk) + block, lane, tier, start_track(head.start[lane][tier]), word,
                   position[lane][tier]);
      }
      ring_.end += head.events[block] & 15;
      ring_.first += head.events[block] >> 4;
      check(ring_.end - ring_.first <= kRingPieces, "strip {} chunk {}: too uneven for the ring", strip_,
            chunk);
    }
  }
  void read_block(int block, int lane, int tier, int track, uint32_t word, uint32_t& position) {
    for (int t = 0; t < 4; ++t) {
      uint32_t a[4];
      for (int h = 0; h < 2; ++h) {
        const uint32_t nibble = mask_nibbles(word, t / 2) >> (16 * (t % 2) + 8 * h) & 15u;
        decode_nibble(ring_, track, nibble, position, a + 2 * h);
      }
      for (int i = 0; i < 8; ++i) {
        const int64_t row = s_.shape.tier_row(strip_, tier) + i / 2 % 2 * 8 + lane / 4;
        const int64_t col = int64_t(block) * kBlockColumns + t * kTcTile + i / 4 * 8 + lane % 4 * 2 + i % 2;
        const Half value{uint16_t(a[i / 2] >> (16 * (i % 2)))};
        if (row < s_.shape.m && col < s_.shape.k) dense_[row * s_.shape.k + col] = value;
      }
    }
  }

  const StripStreamView& s_;
  int64_t strip_;
  Half* dense_;
  Ring ring_;
};

}  // namespace

StripStreamHost make_strip_stream(const TcaBmeView& matrix, int chunks, bool paired) {
  StripStreamHost out;
  out.shape = {matrix.m, matrix.k, chunks, paired};
  check(!paired || StripShape::can_pair(matrix.m), "strip streams of {}×{}: its halves have no whole strips",
        matrix.m, matrix.k);
  check(chunks >= 1 && chunks <= out.shape.blocks() && out.shape.max_chunk_blocks() <= kMaxChunkBlocks,
        "strip streams of {}×{}: {} chunks, legal are {} to {}", matrix.m, matrix.k, chunks,
        (out.shape.blocks() + kMaxChunkBlocks - 1) / kMaxChunkBlocks, out.shape.blocks());
  for (int64_t strip = 0; strip < out.shape.strips(); ++strip)
    StripBuilder(matrix, out.shape, strip, out).build();
  out.values.resize(out.values.size() + kSlackRows * kTrackRowBytes);
  return out;
}

std::vector<Half> decode_strip_stream(const StripStreamView& stream) {
  std::vector<Half> dense(size_t(stream.shape.m * stream.shape.k), Half{0x7e00});
  for (int64_t strip = 0; strip < stream.shape.strips(); ++strip)
    StripReader(stream, strip, dense.data()).read();
  return dense;
}

}  // namespace spinfer
