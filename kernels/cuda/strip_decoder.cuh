// Decodes strip streams (kernels/format/strip_stream.h) from shared memory into the A registers of
// mma.m16n8k16 / wgmma.
//
// Per TCTile (eight weights of a lane, four registers) 29 instructions: 15 on the ALU pipe (6 PRMT, 4 SHF, 4
// LOP3 and its share of taking the mask apart), 10 on the FMA pipe (8 IDP, 2 IMAD) and 4 shared loads of one
// wavefront each (bank = track): the two words that hold a nibble. There is no table in memory: one PRMT
// looks up four pairs' codes, another their lengths. A lane's place is a running count, never in memory.
#pragma once

#include <cstdint>

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

/// The decoder's constants. They go through shared memory into registers: literals and kernel parameters
/// would be moved to registers again wherever they are used, a fifth of all instructions.
struct DecodeTables {
  uint32_t codes = kPairCodes, advances = kPairAdvances;
  uint32_t factor = kSelectorFactor, factor_high = kSelectorFactor << 16, offset = kSelectorOffset;
  uint32_t first_of_nibble[2] = {1, 1u << 16};  ///< weights of a tile's advances in sums
  uint32_t first_nibble = 0x0101;
  uint32_t all = 0x01010101;

  __device__ static DecodeTables from_shared(uint32_t address) {
    DecodeTables tables;
    auto* words = reinterpret_cast<uint32_t*>(&tables);
#pragma unroll
    for (uint32_t i = 0; i < sizeof(DecodeTables) / 4; ++i)
      asm volatile("ld.volatile.shared.b32 %0, [%1];" : "=r"(words[i]) : "r"(address + 4 * i));
    return tables;
  }
};

/// A TCTile on its way from shared memory.
struct TileWindow {
  uint32_t codes;
  uint32_t words[2][2];  ///< of each nibble
  uint32_t shift[2][2];  ///< of each pair; the first's counts modulo 32

  __device__ void assemble(const DecodeTables& tables, uint32_t* a) const {
    const uint32_t selectors[4] = {
        __dp2a_lo(tables.factor, codes, tables.offset), __dp2a_lo(tables.factor_high, codes, tables.offset),
        __dp2a_hi(tables.factor, codes, tables.offset), __dp2a_hi(tables.factor_high, codes, tables.offset)};
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const uint32_t first = __funnelshift_r(words[h][0], words[h][1], shift[h][0]);
      const auto second = uint32_t((uint64_t(words[h][1]) << 32 | words[h][0]) >> shift[h][1]);
      a[2 * h] = permute_bytes(first, 0, selectors[2 * h]);
      a[2 * h + 1] = permute_bytes(second, 0, selectors[2 * h + 1]);
    }
  }
};

/// A lane's place in a stream. Positions are in sixteenths of a half: a word is 32, so that the position
/// is also the amount of the shift that aligns an odd half. Rows are taken modulo kRows (a power of two), the
/// row behind the last must repeat the first.
template <int kRows>
struct StripDecoder {
  DecodeTables tables;
  uint32_t column = 0;  ///< shared address of the lane's track in row 0
  uint32_t position = 0;

  /// Starts the loads of a tile's values; `pairs` has a pair of weights a nibble in its low half, the higher
  /// two bits of each zero. Tiles must come in order.
  __device__ void load(uint32_t pairs, TileWindow& window) {
    window.codes = permute_bytes(tables.codes, tables.codes, pairs);
    const uint32_t advances = permute_bytes(tables.advances, tables.advances, pairs);
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const uint32_t at = h == 0 ? position : __dp4a(advances, tables.first_nibble, position);
      const uint32_t row = row_address(at);
      window.words[h][0] = load_shared(row);
      window.words[h][1] = load_shared(row + kTrackRowBytes);
      window.shift[h][0] = at;
      window.shift[h][1] = __dp4a(advances, tables.first_of_nibble[h], at & 31u);
    }
    position = __dp4a(advances, tables.all, position);
  }

 private:
  /// In PTX, or the compiler makes three instructions of two.
  __device__ uint32_t row_address(uint32_t at) const {
    uint32_t row;
    asm("{\n\t.reg .b32 word;\n\tand.b32 word, %1, %3;\n\tmad.lo.u32 %0, word, %4, %2;\n\t}"
        : "=r"(row)
        : "r"(at), "r"(column), "n"((kRows - 1) << 5), "n"(kTrackRowBytes / 32));
    return row;
  }
};

}  // namespace spinfer::cuda
