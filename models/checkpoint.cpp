#include "models/checkpoint.h"

#include <algorithm>
#include <bit>
#include <charconv>
#include <cstdlib>
#include <cstring>
#include <new>
#include <optional>
#include <system_error>

#include "kernels/check.h"
#include "models/json_text.h"

namespace spinfer {
namespace {

namespace fs = std::filesystem;

/// Index files name shards: plain file names only, and symbolic links must not lead out of the directory. The
/// Hugging Face cache is let through: files in <repository>/snapshots/<revision> are links into
/// <repository>/blobs.
void check_shard_name(const fs::path& directory, const std::string& shard, const std::string& source) {
  const bool plain = !shard.empty() && shard != "." && shard != ".." &&
                     shard.find_first_of(std::string_view("/\\\0", 3)) == std::string::npos;
  check(plain, "{}: \"{}\" is no file name inside the directory", source, printable(shard));
  std::error_code error;
  const fs::path home = fs::canonical(directory, error), target = fs::canonical(directory / shard, error);
  check(!error, "{}: {} names it but it cannot be opened: {}", (directory / shard).string(), source,
        error.message());
  const fs::path parent = target.parent_path();
  const bool cache =
      home.parent_path().filename() == "snapshots" && parent == home.parent_path().parent_path() / "blobs";
  check(parent == home || cache, "{}: \"{}\" is a link that leaves the directory", source, printable(shard));
}

/// "4096 11008" → M and K.
std::optional<std::pair<int64_t, int64_t>> parse_shape(const std::string& text) {
  int64_t m = 0, k = 0;
  const char* end = text.data() + text.size();
  const auto first = std::from_chars(text.data(), end, m);
  if (first.ec != std::errc() || first.ptr == end || *first.ptr != ' ') return {};
  const auto second = std::from_chars(first.ptr + 1, end, k);
  if (second.ec != std::errc() || second.ptr != end) return {};
  return std::pair(m, k);
}

/// True if one is NaN or infinite. As a maximum of 16-bit numbers the compiler makes it eight at a time: it
/// reads every weight of a checkpoint.
bool any_non_finite(const Half* x, int64_t count) {
  constexpr int16_t kExponent = 0x7c00;
  int16_t largest = 0;
  for (int64_t i = 0; i < count; ++i) largest = std::max(largest, int16_t(x[i].bits & kExponent));
  return largest == kExponent;
}

Half half_of(float f) {
  return to_half(f);
}
Half half_of(Half h) {
  return h;
}
struct BFloat {
  uint16_t bits;
};
Half half_of(BFloat b) {
  return to_half(std::bit_cast<float>(uint32_t{b.bits} << 16));
}
float float_of(float f) {
  return f;
}
float float_of(Half h) {
  return to_float(h);
}
float float_of(BFloat b) {
  return std::bit_cast<float>(uint32_t{b.bits} << 16);
}

template <class T>
T load_as(const std::byte* bytes) {  // tensors may be at odd addresses
  T value;
  std::memcpy(&value, bytes, sizeof(T));
  return value;
}

/// Converts `count` elements; false if one of them does not become a finite fp16 number.
template <class T>
bool convert(const std::byte* source, int64_t count, Half* out) {
  for (int64_t i = 0; i < count; ++i) out[i] = half_of(load_as<T>(source + i * int64_t(sizeof(T))));
  return !any_non_finite(out, count);
}
bool convert(Dtype dtype, const std::byte* source, int64_t count, Half* out) {
  switch (dtype) {
    case Dtype::f16:
      return convert<Half>(source, count, out);
    case Dtype::bf16:
      return convert<BFloat>(source, count, out);
    default:
      return convert<float>(source, count, out);
  }
}
float element(Dtype dtype, const std::byte* source) {
  switch (dtype) {
    case Dtype::f16:
      return float_of(load_as<Half>(source));
    case Dtype::bf16:
      return float_of(load_as<BFloat>(source));
    default:
      return float_of(load_as<float>(source));
  }
}

constexpr const char* kWeightRange = "weights must be finite and at most 65504 in size (fp16)";

}  // namespace

std::shared_ptr<Half[]> make_halves(int64_t count) {
  constexpr size_t kAlignment = 64;
  const size_t bytes = (size_t(count) * sizeof(Half) + kAlignment) / kAlignment * kAlignment;
  void* memory = std::aligned_alloc(kAlignment, bytes);
  if (!memory) throw std::bad_alloc();
  return {static_cast<Half*>(memory), [](Half* halves) { std::free(halves); }};
}

Checkpoint::Checkpoint(const fs::path& directory, ThreadPool& pool) : directory_(directory), pool_(pool) {
  std::error_code error;
  if (!fs::is_directory(directory, error))
    fail("{}: {}", directory.string(), absence(directory, "directory"));
  // Both: transformers saved a small model over a large one, and left the old index.
  if (fs::exists(directory / kSingleFile, error)) {
    open_single(directory / kSingleFile);
  } else if (fs::exists(directory / kIndexFile, error)) {
    open_sharded(directory / kIndexFile);
  } else {
    const bool torch = fs::exists(directory / "pytorch_model.bin", error) ||
                       fs::exists(directory / "pytorch_model.bin.index.json", error);
    fail("{}: neither {} nor {} is there{}", directory.string(), kSingleFile, kIndexFile,
         torch ? "; scripts/convert_pytorch_bin.py makes them from pytorch_model.bin" : "");
  }
  collect_packed();
}

Checkpoint::Checkpoint(const Checkpoint& opened, ThreadPool& pool)
    : directory_(opened.directory_),
      pool_(pool),
      files_(opened.files_),
      tensors_(opened.tensors_),
      packed_(opened.packed_) {}

void Checkpoint::open_single(const fs::path& path) {
  files_.push_back(std::make_shared<const SafetensorsFile>(path));
  for (const auto& entry : files_.back()->tensors()) tensors_[entry.name] = {files_.back().get(), &entry};
}

void Checkpoint::open_sharded(const fs::path& index) {
  const std::string source = index.string();
  const auto json = parse_json(read_text_file(index, kMaxIndexBytes), source);
  const auto* map = JsonFields(json, source).find("weight_map");
  check(map && map->is_object() && !map->empty(),
        "{}: \"weight_map\" must be an object that names a shard for each tensor", source);
  std::map<std::string, const SafetensorsFile*> shards;
  for (const auto& [name, value] : map->items()) {
    check(value.is_string(), "{}: tensor {}: the shard must be a file name, is {}", source, printable(name),
          printable_value(value));
    const std::string shard = value.get<std::string>();
    const SafetensorsFile*& file = shards[shard];
    if (!file) {
      check_shard_name(directory_, shard, source);
      files_.push_back(std::make_shared<const SafetensorsFile>(directory_ / shard));
      file = files_.back().get();
    }
    const auto* entry = file->find(name);
    check(entry, "{}: tensor {} should be in {}, which does not hold it", source, printable(name),
          printable(shard));
    tensors_[name] = {file, entry};
  }
}

void Checkpoint::collect_packed() {
  const std::string suffix = std::string(kPackedSuffix) + "bitmaps";
  std::vector<std::pair<std::string, const Located*>> found;
  for (const auto& [name, located] : tensors_) {
    if (name.size() <= suffix.size() || !name.ends_with(suffix)) continue;
    found.emplace_back(name.substr(0, name.size() - suffix.size()), &located);
  }
  std::vector<Packed> packed(found.size());
  pool_.parallel_for(int64_t(found.size()), [&](int64_t i) {
    const auto& [name, bitmaps] = found[size_t(i)];
    packed[size_t(i)] = make_packed(name, *bitmaps);
  });
  for (size_t i = 0; i < found.size(); ++i) packed_.emplace(found[i].first, std::move(packed[i]));
}

Checkpoint::Packed Checkpoint::make_packed(const std::string& name, const Located& bitmaps) const {
  const SafetensorsFile& file = *bitmaps.file;
  const std::string label = fmt::format("{}: tensor {}", file.path().string(), printable(name));
  const auto version = file.metadata().find(kPackedVersionKey);
  check(version != file.metadata().end() && version->second == kPackedVersion,
        "{}: packed format version \"{}\"; this program reads version {}", file.path().string(),
        version == file.metadata().end() ? "" : printable(version->second), kPackedVersion);
  const auto part = [&](const char* what) -> const TensorEntry& {
    const auto* entry = file.find(name + kPackedSuffix + what);
    check(entry, "{}{}{} is missing", label, kPackedSuffix, what);
    return *entry;
  };
  const TensorEntry &values = part("values"), &offsets = part("offsets");
  const auto text = file.metadata().find(name + kPackedSuffix + "shape");
  const auto shape = text == file.metadata().end() ? std::nullopt : parse_shape(text->second);
  check(shape.has_value(), "{}: the metadata hold no \"M K\" under {}{}shape", label, printable(name),
        kPackedSuffix);
  check(bitmaps.entry->dtype == Dtype::u64 && values.dtype == Dtype::f16 &&
            (offsets.dtype == Dtype::u32 || offsets.dtype == Dtype::u64),
        "{}: bitmaps must be U64, values F16 and offsets U32 or U64; they are {}, {} and {}", label,
        dtype_name(bitmaps.entry->dtype), dtype_name(values.dtype), dtype_name(offsets.dtype));
  const auto bitmap_bytes = file.bytes(*bitmaps.entry), value_bytes = file.bytes(values),
             offset_bytes = file.bytes(offsets);
  TcaBmeView view;
  std::tie(view.m, view.k) = *shape;
  view.nonzeros = int64_t(value_bytes.size() / sizeof(Half));
  view.bitmaps = reinterpret_cast<const uint64_t*>(bitmap_bytes.data());
  view.values = reinterpret_cast<const Half*>(value_bytes.data());
  if (offsets.dtype == Dtype::u32) {
    view.offsets32 = reinterpret_cast<const uint32_t*>(offset_bytes.data());
  } else {
    view.offsets64 = reinterpret_cast<const uint64_t*>(offset_bytes.data());
  }
  for (const auto part_bytes : {bitmap_bytes, value_bytes, offset_bytes}) file.file()->prefetch(part_bytes);
  validate(view, bitmap_bytes.size() / sizeof(uint64_t), value_bytes.size() / sizeof(Half),
           offset_bytes.size() / size_t(dtype_bytes(offsets.dtype)), label.c_str());
  check(!any_non_finite(view.values, view.nonzeros), "{}: {}", label, kWeightRange);
  return {&file, TcaBmeMatrix(view, file.file())};
}

namespace {

/// Checkpoints saved from the bare model (OPTModel, LlamaModel) lack the leading "model.".
template <class Map>
const typename Map::mapped_type* find_named(const Map& map, const std::string& name) {
  auto it = map.find(name);
  if (it == map.end() && name.starts_with("model.")) it = map.find(name.substr(6));
  return it == map.end() ? nullptr : &it->second;
}

}  // namespace

const Checkpoint::Located* Checkpoint::find(const std::string& name) const {
  return find_named(tensors_, name);
}
const Checkpoint::Packed* Checkpoint::find_packed(const std::string& name) const {
  return find_named(packed_, name);
}

DenseMatrix Checkpoint::tensor(const TensorSpec& spec) const {
  if (spec.cols > 0)
    return read(spec.name, {spec.rows, spec.cols}, spec.cols, {0, spec.rows}, {0, spec.cols});
  return read(spec.name, {spec.rows}, spec.rows, {0, 1}, {0, spec.rows});
}

DenseMatrix Checkpoint::dense_block(const std::string& name, int64_t m, int64_t k, Range rows,
                                    Range cols) const {
  return read(name, {m, k}, k, rows, cols);
}

DenseMatrix Checkpoint::read(const std::string& name, const std::vector<int64_t>& shape, int64_t k,
                             Range rows, Range cols) const {
  const Located* located = find(name);
  if (!located && shape.size() == 2 && find(name + kBitmaskSuffix))
    return read_bitmask(name, shape[0], k, rows, cols);
  check(located, "{}: tensor {} is missing{}", directory_.string(), name,
        is_packed(name) ? " (it is packed)" : "");
  const SafetensorsFile* file = located->file;
  const TensorEntry* entry = located->entry;
  const std::string label = fmt::format("{}: tensor {}", file->path().string(), name);
  check(entry->shape == shape, "{} has shape {}; config.json makes it [{}]", label, entry->shape_text(),
        fmt::join(shape, ", "));
  check(entry->dtype == Dtype::f16 || entry->dtype == Dtype::bf16 || entry->dtype == Dtype::f32,
        "{} has dtype {}; weights must be F16, BF16 or F32", label, dtype_name(entry->dtype));
  const auto bytes = file->bytes(*entry);
  const int64_t size = dtype_bytes(entry->dtype);
  const auto row_bytes = [&](int64_t row) {
    return bytes.data() + ((rows.begin + row) * k + cols.begin) * size;
  };
  const auto refuse = [&](int64_t row) {
    for (int64_t col = 0; col < cols.size(); ++col) {
      Half half;
      const std::byte* source = row_bytes(row) + col * size;
      if (!convert(entry->dtype, source, 1, &half)) {
        fail("{}: element {} is {}; {}", label, (rows.begin + row) * k + cols.begin + col,
             element(entry->dtype, source), kWeightRange);
      }
    }
  };
  DenseMatrix block{rows.size(), cols.size(), nullptr, nullptr};
  const bool aligned = reinterpret_cast<uintptr_t>(bytes.data()) % alignof(Half) == 0;
  file->file()->prefetch(bytes.subspan(size_t(rows.begin * k * size), size_t(rows.size() * k * size)));
  if (entry->dtype == Dtype::f16 && aligned && cols.size() == k) {
    block.data = reinterpret_cast<const Half*>(row_bytes(0));
    block.storage = file->file();
    pool_.parallel_for(rows.size(), [&](int64_t row) {
      if (any_non_finite(block.data + row * k, k)) refuse(row);
    });
    return block;
  }
  const auto halves = make_halves(rows.size() * cols.size());
  pool_.parallel_for(rows.size(), [&](int64_t row) {
    if (!convert(entry->dtype, row_bytes(row), cols.size(), halves.get() + row * cols.size())) refuse(row);
  });
  block.data = halves.get();
  block.storage = halves;
  return block;
}

DenseMatrix Checkpoint::read_bitmask(const std::string& name, int64_t m, int64_t k, Range rows,
                                     Range cols) const {
  const Located* bitmask = find(name + kBitmaskSuffix);
  const Located* values = find(name + kBitmaskValuesSuffix);
  const std::string label = fmt::format("{}: tensor {}", bitmask->file->path().string(), name);
  check(values, "{}{} is missing", label, kBitmaskValuesSuffix);
  const std::vector<int64_t> shape{m, (k + 7) / 8};
  check(bitmask->entry->dtype == Dtype::u8 && bitmask->entry->shape == shape,
        "{}{} is {} {}; config.json makes it U8 [{}]", label, kBitmaskSuffix,
        dtype_name(bitmask->entry->dtype), bitmask->entry->shape_text(), fmt::join(shape, ", "));
  const Dtype dtype = values->entry->dtype;
  check(dtype == Dtype::f16 || dtype == Dtype::bf16 || dtype == Dtype::f32,
        "{}{} has dtype {}; weights must be F16, BF16 or F32", label, kBitmaskValuesSuffix,
        dtype_name(dtype));
  const int64_t size = dtype_bytes(dtype);
  const auto dense = expand_bitmask(bitmask->file->bytes(*bitmask->entry),
                                    values->file->bytes(*values->entry), m, k, size, pool_, label);
  const auto halves = make_halves(rows.size() * cols.size());
  pool_.parallel_for(rows.size(), [&](int64_t row) {
    const std::byte* source = dense.data() + ((rows.begin + row) * k + cols.begin) * size;
    check(convert(dtype, source, cols.size(), halves.get() + row * cols.size()), "{}: row {}: {}", label,
          rows.begin + row, kWeightRange);
  });
  return {rows.size(), cols.size(), halves.get(), halves};
}

TcaBmeMatrix Checkpoint::packed(const std::string& name, int64_t m, int64_t k) const {
  const Packed* packed = find_packed(name);
  check(packed, "{}: packed tensor {} is missing", directory_.string(), name);
  const TcaBmeView& view = packed->matrix.view();
  check(view.m == m && view.k == k, "{}: tensor {} has shape [{}, {}]; config.json makes it [{}, {}]",
        packed->file->path().string(), name, view.m, view.k, m, k);
  return packed->matrix;
}

HostMatrix Checkpoint::block(const std::string& name, int64_t m, int64_t k, Range rows, Range cols) const {
  if (!is_packed(name)) return dense_block(name, m, k, rows, cols);
  TcaBmeMatrix matrix = packed(name, m, k);
  const Range all_rows{0, m}, all_cols{0, k};
  if (rows == all_rows && cols == all_cols) return matrix;
  const auto on_border = [](Range r, int64_t size) {
    return r.begin % kGroupTile == 0 && (r.end % kGroupTile == 0 || r.end == size);
  };
  if (on_border(rows, m) && on_border(cols, k)) {
    if (rows != all_rows) matrix = slice_rows(matrix, rows.begin, rows.end);
    if (cols != all_cols) matrix = slice_cols(matrix, cols.begin, cols.end, pool_);
    return matrix;
  }
  const DenseMatrix whole = decode(matrix.view(), pool_);
  const auto halves = make_halves(rows.size() * cols.size());
  for (int64_t row = 0; row < rows.size(); ++row) {
    std::copy_n(whole.data + (rows.begin + row) * k + cols.begin, cols.size(),
                halves.get() + row * cols.size());
  }
  return encode(DenseMatrix{rows.size(), cols.size(), halves.get(), halves}, pool_);
}

}  // namespace spinfer
