// Decodes strip streams (kernels/format/strip_stream.h) from an unfolded chunk in shared memory into the A
// registers of mma.m16n8k16 / wgmma.
//
// Per nibble (four weights, two registers) and lane 14 instructions: 7 on the ALU pipe (3 LOP3, 2 SHF, 2
// PRMT), 4 on the FMA pipe (3 IDP, 1 IMAD) and 3 shared loads: the 64-bit table entry (2 wavefronts; 16
// entries in 32 banks) and the two words of the window (a wavefront each: bank = rank). A lane's place is a
// running count, never in memory, so the loads of several nibbles are in flight together.
#pragma once

#include <cstdint>

#include "kernels/format/strip_stream.h"

namespace spinfer::cuda {

__device__ inline uint32_t load_shared(uint32_t address) {
  uint32_t value;
  asm volatile("ld.shared.b32 %0, [%1];" : "=r"(value) : "r"(address));
  return value;
}

/// The same, for the compiler to move: only where the address depends on a value loaded after the data's
/// barrier, and the result is used before the data goes.
__device__ inline uint32_t load_shared_freely(uint32_t address) {
  uint32_t value;
  asm("ld.shared.b32 %0, [%1];" : "=r"(value) : "r"(address));
  return value;
}

/// prmt reads the low 16 bits of `selectors`; __byte_perm would first mask them, an instruction each.
__device__ inline uint32_t permute_bytes(uint32_t low, uint32_t high, uint32_t selectors) {
  uint32_t value;
  asm("prmt.b32 %0, %1, %2, %3;" : "=r"(value) : "r"(low), "r"(high), "r"(selectors));
  return value;
}

/// What a nibble means, as `StripDecoder` reads it from shared memory.
struct alignas(8) NibbleEntry {
  uint32_t first;   ///< selectors of the first register; high half all ones for a full nibble, else zero
  uint32_t second;  ///< selectors of the second register; high half: nonzeros
};
constexpr NibbleEntry nibble_entry(uint32_t nibble) {
  const uint32_t selectors = nibble_selectors(nibble);
  const uint32_t count = (nibble & 1) + (nibble >> 1 & 1) + (nibble >> 2 & 1) + (nibble >> 3);
  return {(selectors & 0xffffu) | (count == 4 ? 0xffff0000u : 0u), selectors >> 16 | count << 16};
}

/// Where `StripDecoder` reads the 16 entries. As a constant it goes into the loads; as an address it costs an
/// addition per nibble, for ptxas adds the block's place in its cluster to it. So the kernel's one static
/// shared array must be the table: it lies behind the kilobyte the system reserves.
inline constexpr uint32_t kNibbleTableAddress = 0x400;
/// All threads of the block; a barrier must follow. Traps if the table is not where it must be.
__device__ inline void fill_nibble_table(NibbleEntry (&table)[16], int thread) {
  const auto address = static_cast<uint32_t>(__cvta_generic_to_shared(table));
  if ((address & 0xffffffu) != kNibbleTableAddress) __trap();
  if (thread < 16) table[thread] = nibble_entry(uint32_t(thread));
}

/// Factors of the dot-product instructions. A kernel parameter: as literals they would be moved to registers
/// anew in every block, from the parameters' constant bank they are operands.
struct DecodeFactors {
  uint32_t index[4] = {8u, 8u << 8, 8u << 16, 8u << 24};  ///< dp4a: a byte of nibbles to its entry's offset
  uint32_t bump = 4u << 8;      ///< dp2a: an entry's count to a quarter of its advance
  uint32_t advance = 16u << 8;  ///< dp2a: an entry's count to its advance
};

/// What one nibble needs to become two registers.
struct NibbleWindow {
  NibbleEntry entry;
  uint32_t w0, w1;    ///< the words that hold its values
  uint32_t position;  ///< shift amount

  __device__ void assemble(uint32_t& a0, uint32_t& a1) const {
    const uint32_t v01 = __funnelshift_r(w0, w1, position);
    uint32_t v23 = __funnelshift_r(w1, 0, position);
    // Only a full nibble reads the fourth value: elsewhere it is cleared, to be the selectors' zero.
    asm("lop3.b32 %0, %1, %2, 0xffff, 0xe0;" : "=r"(v23) : "r"(v23), "r"(entry.first));
    a0 = permute_bytes(v01, v23, entry.first);
    a1 = permute_bytes(v01, v23, entry.second);
  }
};

/// Two TCTiles: what is loaded, multiplied and waited for at a time.
struct PairEntries {
  NibbleEntry entry[4];
};
struct PairWindow {
  NibbleWindow nibble[4];
  __device__ void assemble(uint32_t (&a)[8]) const {
#pragma unroll
    for (int i = 0; i < 4; ++i) nibble[i].assemble(a[2 * i], a[2 * i + 1]);
  }
};

/// A block's mask word, its nibbles one a byte.
struct BlockNibbles {
  uint32_t even, odd;
  __device__ explicit BlockNibbles(uint32_t mask) : even(mask & 0x0f0f0f0fu), odd(mask >> 4 & 0x0f0f0f0fu) {}
};

/// One lane's place in its stream. Positions are in sixteenths of a half: a word is 32, so that the position
/// is also the amount of the funnel shift that aligns an odd half (shifts take it modulo 32).
struct StripDecoder {
  const DecodeFactors& factors;
  uint32_t column;  ///< shared address of the lane's word in row 0
  uint32_t position = 0;

  /// Starts the table loads of pair p (0 or 1) of a block.
  __device__ void load_entries(const BlockNibbles& block, int p, PairEntries& pair) const {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      load_entry(__dp4a(block.even, factors.index[2 * p + i], 0u), pair.entry[2 * i]);
      load_entry(__dp4a(block.odd, factors.index[2 * p + i], 0u), pair.entry[2 * i + 1]);
    }
  }
  /// Starts the loads of the pair's values. Pairs must come in order.
  __device__ void load_window(const PairEntries& pair, PairWindow& window) {
#pragma unroll
    for (int i = 0; i < 4; ++i) load_nibble(pair.entry[i], window.nibble[i]);
  }

 private:
  __device__ static void load_entry(uint32_t offset, NibbleEntry& entry) {
    asm("ld.shared.v2.b32 {%0, %1}, [%2];"
        : "=r"(entry.first), "=r"(entry.second)
        : "r"(kNibbleTableAddress + offset));
  }
  __device__ void load_nibble(const NibbleEntry& entry, NibbleWindow& window) {
    // A full nibble at an odd half (position & 16) skips that half. Adding 4·count carries into the word
    // number exactly then; the odd bit survives only where it was set and no carry cleared it.
    const uint32_t bumped = __dp2a_lo(entry.second, factors.bump, position);
    asm("lop3.b32 %0, %1, %2, 31, 0xc4;" : "=r"(position) : "r"(position), "r"(bumped));
    uint32_t row;  // column + row number · 128; in PTX, or the compiler makes three instructions of two
    asm("{\n\t.reg .b32 word;\n\tand.b32 word, %1, 0xffffffe0;\n\tmad.lo.u32 %0, word, 4, %2;\n\t}"
        : "=r"(row)
        : "r"(bumped), "r"(column));
    window.entry = entry;
    window.w0 = load_shared_freely(row);
    window.w1 = load_shared_freely(row + kChunkRowBytes);
    window.position = position;
    position = __dp2a_lo(entry.second, factors.advance, position);
  }
};

}  // namespace spinfer::cuda
