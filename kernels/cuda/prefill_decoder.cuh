// Decodes strip streams (kernels/format/strip_stream.h) from an unfolded chunk in shared memory, a block of
// 64 columns at a time, into wgmma's A registers. The decode regime's decoder (strip_decoder.cuh) keeps more
// in flight; this one leaves its registers to the accumulators.
//
// Per nibble (four weights, two registers) and lane: 7 instructions on the ALU pipe (2 LOP3, 2 SHF, SGXT, 2
// PRMT), 6 on the FMA pipe (IDP, IMAD), one POPC and 3 shared loads of one wavefront each: the table entry
// (16 entries in 16 banks) and the two words of the window (bank = rank). Positions are running popcounts, so
// all eight nibbles' loads can be in flight together.
#pragma once

#include <cstdint>

#include "kernels/format/strip_stream.h"

namespace spinfer::cuda {

/// One lane's place in its stream. Positions are in sixteenths of a half: a word is 32, so that the position
/// is also the amount of the funnel shift that aligns an odd half (shifts take it modulo 32).
class BlockDecoder {
 public:
  /// `table` is the shared address of nibble_selectors(0 … 15).
  __device__ explicit BlockDecoder(uint32_t table) : table_(table) {}

  /// Begins a chunk: `column` is the shared address of the lane's word in row 0.
  __device__ void begin(uint32_t column) {
    column_ = column;
    position_ = 0;
  }
  /// The row of words that the next value is in.
  __device__ uint32_t row() const { return position_ / 32; }

  /// The 16 registers of a block: a[4t … 4t+3] belong to TCTile t.
  __device__ void block(uint32_t mask, uint32_t (&a)[16]) {
    const uint32_t even = mask & 0x0f0f0f0fu, odd = mask >> 4 & 0x0f0f0f0fu;
#pragma unroll
    for (int t = 0; t < 4; ++t) {
      nibble(__dp4a(even, 4u << (8 * t), 0u), a[4 * t], a[4 * t + 1]);
      nibble(__dp4a(odd, 4u << (8 * t), 0u), a[4 * t + 2], a[4 * t + 3]);
    }
  }

  /// Ordered with the barriers around it.
  __device__ static uint32_t load(uint32_t address) {
    uint32_t value;
    asm volatile("ld.shared.b32 %0, [%1];" : "=r"(value) : "r"(address));
    return value;
  }

 private:
  /// Registers 2h and 2h+1 of a TCTile. `index` is four times the nibble.
  __device__ void nibble(uint32_t index, uint32_t& a0, uint32_t& a1) {
    const uint32_t selectors = load(table_ + index);
    const uint32_t count = __popc(index);
    // A full nibble at an odd half (position & 16) skips that half. Adding 4·count carries into the word
    // number exactly then; the odd bit survives only where it was set and no carry cleared it.
    const uint32_t bumped = position_ + 4 * count;
    asm("lop3.b32 %0, %1, %2, 31, 0xc4;" : "=r"(position_) : "r"(position_), "r"(bumped));
    uint32_t row;  // column + row number · 128; in PTX, or the compiler makes three instructions of two
    asm("{\n\t.reg .b32 word;\n\tand.b32 word, %1, 0xffffffe0;\n\tmad.lo.u32 %0, word, 4, %2;\n\t}"
        : "=r"(row)
        : "r"(bumped), "r"(column_));
    const uint32_t w0 = load(row), w1 = load(row + kChunkRowBytes);
    const uint32_t v01 = __funnelshift_r(w0, w1, position_);
    uint32_t v23 = __funnelshift_r(w1, 0, position_);
    // Only a full nibble reads the fourth value: elsewhere its high byte, the selectors' zero, is cut off.
    asm("szext.clamp.u32 %0, %1, %2;" : "=r"(v23) : "r"(v23), "r"(8 * count));
    a0 = permute(v01, v23, selectors);
    a1 = permute(v01, v23, __dp2a_lo(selectors, 0x0100u, 0u));  // the high half, on the FMA pipe
    position_ += 16 * count;
  }
  /// prmt reads the low 16 bits of `selectors`; __byte_perm would first mask them, an instruction each.
  __device__ static uint32_t permute(uint32_t low, uint32_t high, uint32_t selectors) {
    uint32_t value;
    asm("prmt.b32 %0, %1, %2, %3;" : "=r"(value) : "r"(low), "r"(high), "r"(selectors));
    return value;
  }

  uint32_t table_, column_ = 0, position_ = 0;
};

}  // namespace spinfer::cuda
