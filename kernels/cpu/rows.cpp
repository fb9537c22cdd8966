// Ops that copy, combine or make rows: embed, gather_rows, gated_activation, fill_random.
#include <algorithm>

#include "kernels/check.h"
#include "kernels/cpu/activation.h"
#include "kernels/cpu/ops.h"

namespace spinfer::cpu {

void embed(DeviceContext& context, const EmbedArgs& a) {
  const auto id_of = [&](int64_t i) {
    const int32_t id = a.ids[i];
    return id < 0 && a.newest ? std::max(a.newest[-1 - id], 0) : id;
  };
  for (int i = 0; i < a.n; ++i) {
    const int64_t row = int64_t{id_of(i)} + a.id_offset;
    check(row >= 0 && row < a.rows, "embed: id {} (offset {}) is outside the table of {} rows", id_of(i),
          a.id_offset, a.rows);
  }
  for_rows(context, a.n, a.d, [&](int64_t i) {
    const Half* source = a.table + (int64_t{id_of(i)} + a.id_offset) * a.d;
    Half* out = a.out + i * a.d;
    if (a.accumulate) {
      for (int j = 0; j < a.d; ++j) out[j] = to_half(to_float(out[j]) + to_float(source[j]));
    } else {
      std::copy_n(source, a.d, out);
    }
  });
}

void gather_rows(DeviceContext& context, const GatherRowsArgs& a) {
  for_rows(context, a.n, a.d,
           [&](int64_t i) { std::copy_n(a.src + int64_t{a.rows[i]} * a.d, a.d, a.out + i * a.d); });
}

void gated_activation(DeviceContext& context, const GatedActivationArgs& a) {
  // A row of one token may be the whole batch, so rows are cut into pieces to occupy all threads.
  constexpr int64_t kPiece = 2048;
  const int64_t pieces = (a.f + kPiece - 1) / kPiece;
  for_rows(context, a.n * pieces, std::min<int64_t>(a.f, kPiece), [&](int64_t item) {
    const int64_t row = item / pieces, begin = item % pieces * kPiece;
    const int64_t end = std::min<int64_t>(begin + kPiece, a.f);
    const Half* gate = a.gate_up + row * 2 * a.f;
    const Half* up = gate + a.f;
    Half* out = a.out + row * a.f;
    for (int64_t j = begin; j < end; ++j)
      out[j] = to_half(activate(a.act, to_float(gate[j])) * to_float(up[j]));
  });
}

void fill_random(DeviceContext& context, const FillRandomArgs& a) {
  for_rows(context, a.rows, a.cols, [&](int64_t row) {
    Half* out = a.out + row * a.cols;
    const uint64_t first = uint64_t((a.first_row + row) * a.k + a.first_col);
    for (int64_t col = 0; col < a.cols; ++col) {
      const uint64_t bits = random_bits(a.key, first + uint64_t(col));
      const Half value = a.values[bits >> (64 - kRandomValueBits)];
      out[col] = (bits & 0xffffffffu) < a.zero_below ? Half{} : value;
    }
  });
}

}  // namespace spinfer::cpu
