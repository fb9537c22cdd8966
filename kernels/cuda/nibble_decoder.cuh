// Decodes strip streams (kernels/format/strip_stream.h) nibble by nibble with a table in shared memory, into
// the A registers of mma.m16n8k16 / wgmma: 26 instructions a TCTile. The kernels are short of issue slots, of
// the ALU pipe and, beside wgmma, of register reads rather than of shared memory's wavefronts.
//
// Per nibble (four weights, two registers) and lane 12 instructions: 6 on the ALU pipe (2 LOP3, 2 SHF, 2
// PRMT), 3 on the FMA pipe (2 IDP, 1 IMAD) and 3 shared loads: the 64-bit table entry (2 wavefronts; 16
// entries in 32 banks) and the two words of the window (a wavefront each: bank = track).
//
// Tried      without a table, codes looked up by prmt: 29 instructions and 4 wavefronts a tile instead of 8;
//            the decode kernel 3 to 6 % slower, the prefill kernel 2 to 5 %. Entries of 32 bits, whose second
//            selectors take an instruction more and a wavefront less a nibble: the decode kernel 0 to 3 %
//            slower (h200_decode_steps.json, "entries_of_32_bits").
#pragma once

#include <cstdint>

#include "kernels/cuda/ptx.cuh"
#include "kernels/format/strip_stream.h"

namespace spinfer::cuda {

__device__ inline uint32_t load_shared(uint32_t address) {
  uint32_t value;
  asm volatile("ld.shared.b32 %0, [%1];" : "=r"(value) : "r"(address));
  return value;
}

/// prmt reads the low 16 bits of `selectors`; __byte_perm would first mask them, an instruction each.
__device__ inline uint32_t permute_bytes(uint32_t low, uint32_t high, uint32_t selectors) {
  uint32_t value;
  asm("prmt.b32 %0, %1, %2, %3;" : "=r"(value) : "r"(low), "r"(high), "r"(selectors));
  return value;
}

__device__ inline NibbleEntry load_entry(uint32_t address) {
  NibbleEntry entry;
  asm volatile("ld.shared.v2.b32 {%0, %1}, [%2];" : "=r"(entry.first), "=r"(entry.second) : "r"(address));
  return entry;
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
  /// One of the constants, by its shared address: a value the compiler does not know.
  __device__ static uint32_t load(uint32_t address) {
    uint32_t value;
    asm volatile("ld.volatile.shared.b32 %0, [%1];" : "=r"(value) : "r"(address));
    return value;
  }
};

/// One lane's place in a stream. Positions are in sixteenths of a half: a word is 32, so that the position is
/// also the amount of the shift that aligns an odd half.
struct StreamPlace {
  uint32_t column;  ///< shared address of the stream's track in row 0
  uint32_t position;
};

/// A nibble on its way from shared memory.
struct NibbleWindow {
  NibbleEntry entry;
  uint32_t w0, w1;    ///< the words that hold its values
  uint32_t position;  ///< shift amount, modulo 32

  /// Starts the loads and moves `place` on. Rows are taken modulo kRows (a power of two), the row behind the
  /// last must repeat the first.
  template <int kRows>
  __device__ void load(const NibbleEntry& its_entry, uint32_t advance, StreamPlace& place) {
    const uint32_t row = row_address<kRows>(place);
    entry = its_entry;
    w0 = load_shared(row);
    w1 = load_shared(row + kTrackRowBytes);
    position = place.position;
    place.position = __dp2a_lo(entry.second, advance, place.position);
  }

 private:
  /// In PTX, or the compiler makes three instructions of two.
  template <int kRows>
  __device__ static uint32_t row_address(const StreamPlace& place) {
    uint32_t row;
    asm("{\n\t.reg .b32 word;\n\tand.b32 word, %1, %3;\n\tmad.lo.u32 %0, word, %4, %2;\n\t}"
        : "=r"(row)
        : "r"(place.position), "r"(place.column), "n"((kRows - 1) << 5), "n"(kTrackRowBytes / 32));
    return row;
  }
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

/// Half a block of all the lane's streams on its way.
using StripEntries = NibbleEntry[kStripTiers][4];
using StripWindows = NibbleWindow[kStripTiers][4];
using StripValues = NibbleValues[kStripTiers][4];

/// The table's constants in registers, and the two steps of bringing half a block (two tiles a stream): the
/// nibbles' entries, which depend on the masks alone, then their values, which lie where the ones before
/// ended.
template <int kRows>
class NibbleDecoder {
 public:
  __device__ explicit NibbleDecoder(uint32_t table) {
#pragma unroll
    for (uint32_t i = 0; i < 4; ++i)
      index_[i] = NibbleTable::load(table + offsetof(NibbleTable, index) + 4 * i);
    advance_ = NibbleTable::load(table + offsetof(NibbleTable, advance));
    table_ = NibbleTable::load(table + offsetof(NibbleTable, address));
  }
  /// Starts to load the entries of half 0 or 1 of a block with these stored masks.
  __device__ void load_entries(const uint32_t (&masks)[kStripTiers], int half, StripEntries& entries) const {
#pragma unroll
    for (int t = 0; t < kStripTiers; ++t) {
      const uint32_t nibbles = mask_nibbles(masks[t], half);
#pragma unroll
      for (int i = 0; i < 4; ++i) entries[t][i] = load_entry(__dp4a(nibbles, index_[i], table_));
    }
  }
  /// Starts to load the values that these entries stand for. Halves must come in order.
  __device__ void load_values(const StripEntries& entries, StreamPlace (&places)[kStripTiers],
                              StripWindows& windows) const {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
#pragma unroll
      for (int t = 0; t < kStripTiers; ++t)
        windows[t][i].template load<kRows>(entries[t][i], advance_, places[t]);
    }
  }

 private:
  uint32_t table_, index_[4], advance_;
};

}  // namespace spinfer::cuda
