// Decodes strip streams (kernels/format/strip_stream.h) nibble by nibble with a table in shared memory, into
// the A registers of mma.m16n8k16 / wgmma. Against strip_decoder.cuh: 26 instructions a TCTile instead of 29,
// for 8 wavefronts of shared memory instead of 4. The decode kernel is short of issue slots and of the ALU
// pipe, not of wavefronts.
//
// Per nibble (four weights, two registers) and lane 12 instructions: 6 on the ALU pipe (2 LOP3, 2 SHF, 2
// PRMT), 3 on the FMA pipe (2 IDP, 1 IMAD) and 3 shared loads: the 64-bit table entry (2 wavefronts; 16
// entries in 32 banks) and the two words of the window (a wavefront each: bank = track).
#pragma once

#include <cstdint>

#include "kernels/cuda/strip_decoder.cuh"
#include "kernels/format/strip_stream.h"

namespace spinfer::cuda {

/// What a nibble means.
struct alignas(8) NibbleEntry {
  uint32_t first;   ///< prmt selectors of the first register; high half all ones for a full nibble, else zero
  uint32_t second;  ///< selectors of the second register; high half: sixteenths of a half it takes
};
/// Bytes 0 … 7 are the next four values of the stream; byte 7 is zero unless the nibble has four.
constexpr NibbleEntry nibble_entry(uint32_t nibble) {
  uint32_t selectors = 0, count = 0;
  for (uint32_t i = 0; i < 4; ++i) {
    const bool set = nibble >> i & 1;
    selectors |= (set ? (2 * count + 1) << 4 | 2 * count : 0x77u) << (8 * i);
    count += set;
  }
  return {(selectors & 0xffffu) | (count == 4 ? 0xffff0000u : 0u), selectors >> 16 | 16 * count << 16};
}

/// The decoder's constants in shared memory. The weights are there because literals and kernel parameters
/// would be moved to registers again wherever they are used.
struct NibbleTable {
  NibbleEntry entries[16];
  uint32_t index[4];  ///< dp4a: a byte of nibbles to its entry's offset
  uint32_t advance;   ///< dp2a: an entry's high half
  uint32_t address;   ///< shared address of `entries`

  /// By a whole warp; a barrier must follow.
  __device__ void fill(int lane) {
    if (lane < 16) entries[lane] = nibble_entry(uint32_t(lane));
    if (lane < 4) index[lane] = 8u << (8 * lane);
    if (lane == 0) {
      advance = 1u << 8;
      address = ptx::shared_address(entries);
    }
  }
};

/// A nibble on its way from shared memory.
struct NibbleWindow {
  NibbleEntry entry;
  uint32_t w0, w1;    ///< the words that hold its values
  uint32_t position;  ///< shift amount, modulo 32
};

/// A nibble that has come.
struct NibbleValues {
  NibbleEntry entry;
  uint32_t v01, v23;  ///< the stream's next four values

  __device__ void take(const NibbleWindow& window) {
    entry = window.entry;
    v01 = __funnelshift_r(window.w0, window.w1, window.position);
    v23 = __funnelshift_r(window.w1, 0, window.position);
  }
  /// The same, here and now: it cannot sink below what gives the words up.
  __device__ void take_now(const NibbleWindow& window) {
    entry = window.entry;
    asm volatile("shf.r.wrap.b32 %0, %1, %2, %3;"
                 : "=r"(v01)
                 : "r"(window.w0), "r"(window.w1), "r"(window.position));
    asm volatile("shf.r.wrap.b32 %0, %1, 0, %2;" : "=r"(v23) : "r"(window.w1), "r"(window.position));
  }
  __device__ void assemble(uint32_t* a) const {
    // Only a full nibble reads the fourth value: elsewhere it is cleared, to be the selectors' zero.
    uint32_t last;
    asm("lop3.b32 %0, %1, %2, 0xffff, 0xe0;" : "=r"(last) : "r"(v23), "r"(entry.first));
    a[0] = permute_bytes(v01, last, entry.first);
    a[1] = permute_bytes(v01, last, entry.second);
  }
};

/// One lane's place in a stream; positions as StripDecoder's.
struct StreamPlace {
  uint32_t column;  ///< shared address of the stream's track in row 0
  uint32_t position;
};

/// Half a block of all the lane's streams on its way.
using StripEntries = NibbleEntry[kStripTiers][4];
using StripWindows = NibbleWindow[kStripTiers][4];
using StripValues = NibbleValues[kStripTiers][4];

/// The table's constants in registers, and the two steps of bringing half a block (two tiles a stream): the
/// nibbles' entries, which depend on the masks alone, then their values, which lie where the ones before
/// ended. Rows are taken modulo kRows (a power of two), the row behind the last must repeat the first.
template <int kRows>
class NibbleDecoder {
 public:
  __device__ explicit NibbleDecoder(uint32_t table) {
#pragma unroll
    for (uint32_t i = 0; i < 4; ++i) index_[i] = load(table + offsetof(NibbleTable, index) + 4 * i);
    advance_ = load(table + offsetof(NibbleTable, advance));
    table_ = load(table + offsetof(NibbleTable, address));
  }
  /// Starts to load the entries of half 0 or 1 of a block with these stored masks.
  __device__ void load_entries(const uint32_t (&masks)[kStripTiers], int half, StripEntries& entries) const {
#pragma unroll
    for (int t = 0; t < kStripTiers; ++t) {
      const uint32_t nibbles = mask_nibbles(masks[t], half);
#pragma unroll
      for (int i = 0; i < 4; ++i)
        asm volatile("ld.shared.v2.b32 {%0, %1}, [%2];"
                     : "=r"(entries[t][i].first), "=r"(entries[t][i].second)
                     : "r"(__dp4a(nibbles, index_[i], table_)));
    }
  }
  /// Starts to load the values that these entries stand for. Halves must come in order.
  __device__ void load_values(const StripEntries& entries, StreamPlace (&places)[kStripTiers],
                              StripWindows& windows) const {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
#pragma unroll
      for (int t = 0; t < kStripTiers; ++t) {
        const uint32_t row = row_address(places[t]);
        windows[t][i].entry = entries[t][i];
        windows[t][i].w0 = load_shared(row);
        windows[t][i].w1 = load_shared(row + kTrackRowBytes);
        windows[t][i].position = places[t].position;
        places[t].position = __dp2a_lo(entries[t][i].second, advance_, places[t].position);
      }
    }
  }

 private:
  __device__ static uint32_t load(uint32_t address) {
    uint32_t value;
    asm volatile("ld.volatile.shared.b32 %0, [%1];" : "=r"(value) : "r"(address));
    return value;
  }
  /// In PTX, or the compiler makes three instructions of two.
  __device__ static uint32_t row_address(const StreamPlace& place) {
    uint32_t row;
    asm("{\n\t.reg .b32 word;\n\tand.b32 word, %1, %3;\n\tmad.lo.u32 %0, word, %4, %2;\n\t}"
        : "=r"(row)
        : "r"(place.position), "r"(place.column), "n"((kRows - 1) << 5), "n"(kTrackRowBytes / 32));
    return row;
  }

  uint32_t table_, index_[4], advance_;
};

}  // namespace spinfer::cuda
