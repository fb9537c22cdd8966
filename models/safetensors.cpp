#include "models/safetensors.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <nlohmann/json.hpp>
#include <optional>
#include <unordered_set>

#include "kernels/check.h"
#include "models/json_text.h"

namespace spinfer {
namespace {

static_assert(std::endian::native == std::endian::little, "safetensors are little-endian and used in place");

struct KnownDtype {
  const char* name;
  int bytes;
};
// In the order of Dtype.
constexpr std::array kDtypes = {
    KnownDtype{"BOOL", 1},    KnownDtype{"U8", 1},  KnownDtype{"I8", 1},  KnownDtype{"F8_E4M3", 1},
    KnownDtype{"F8_E5M2", 1}, KnownDtype{"U16", 2}, KnownDtype{"I16", 2}, KnownDtype{"F16", 2},
    KnownDtype{"BF16", 2},    KnownDtype{"U32", 4}, KnownDtype{"I32", 4}, KnownDtype{"F32", 4},
    KnownDtype{"U64", 8},     KnownDtype{"I64", 8}, KnownDtype{"F64", 8},
};
static_assert(kDtypes.size() == size_t(Dtype::f64) + 1);

/// Takes the header apart while it is read, so that memory stays proportional to the tensors it names. The
/// only legal form is {"__metadata__": {string: string}, tensor: {"dtype": string, "shape": [...],
/// "data_offsets": [begin, end]}}.
class HeaderHandler {
 public:
  HeaderHandler(SafetensorsHeader& header, const std::string& source) : header_(header), source_(source) {}

  bool null() { return unexpected("null"); }
  bool boolean(bool) { return unexpected("a boolean"); }
  bool number_integer(int64_t value) { return unexpected(fmt::format("{}", value)); }
  bool number_float(double, const std::string& text) { return unexpected(text); }
  bool binary(std::vector<uint8_t>&) { return unexpected("bytes"); }

  bool number_unsigned(uint64_t value) {
    if (state_ == State::shape) {
      check(value <= uint64_t(INT64_MAX), "{}: tensor {}: dimension {} is too large", source_, name(), value);
      check(tensor().shape.size() < kMaxSafetensorsDims, "{}: tensor {}: more than {} dimensions", source_,
            name(), kMaxSafetensorsDims);
      tensor().shape.push_back(int64_t(value));
    } else if (state_ == State::offsets) {
      check(offsets_ < 2, "{}: tensor {}: \"data_offsets\" holds more than two numbers", source_, name());
      (offsets_++ == 0 ? tensor().begin : tensor().end) = value;
    } else {
      return unexpected(fmt::format("{}", value));
    }
    return true;
  }

  bool string(std::string& value) {
    if (state_ == State::metadata) {
      check(header_.metadata.emplace(key_, value).second, "{}: __metadata__ holds \"{}\" twice", source_,
            printable(key_));
    } else if (state_ == State::tensor && key_ == "dtype") {
      const auto it =
          std::find_if(kDtypes.begin(), kDtypes.end(), [&](const auto& d) { return value == d.name; });
      check(it != kDtypes.end(),
            "{}: tensor {}: unknown dtype \"{}\"; known: BOOL, (U|I)(8|16|32|64), F8_E4M3, F8_E5M2, "
            "F16, BF16, F32, F64",
            source_, name(), printable(value));
      tensor().dtype = Dtype(it - kDtypes.begin());
    } else {
      return unexpected("a string");
    }
    return true;
  }

  bool start_object(size_t) {
    if (state_ == State::start) {
      state_ = State::top;
    } else if (state_ == State::top && key_ == "__metadata__") {
      state_ = State::metadata;
    } else if (state_ == State::top) {
      check(header_.tensors.size() < kMaxSafetensors, "{}: more than {} tensors", source_, kMaxSafetensors);
      header_.tensors.push_back({key_, Dtype::f16, {}, 0, 0});
      fields_ = {};
      state_ = State::tensor;
    } else {
      return unexpected("an object");
    }
    return true;
  }

  bool key(std::string& value) {
    if (state_ == State::top) {
      check(names_.insert(value).second, "{}: \"{}\" appears twice", source_, printable(value));
    } else if (state_ == State::tensor) {
      const auto field = std::find(kFields.begin(), kFields.end(), value);
      check(field != kFields.end(), "{}: tensor {}: unknown field \"{}\"; known: dtype, shape, data_offsets",
            source_, name(), printable(value));
      bool& seen = fields_[size_t(field - kFields.begin())];
      check(!seen, "{}: tensor {}: \"{}\" appears twice", source_, name(), printable(value));
      seen = true;
    }
    key_ = std::move(value);
    return true;
  }

  bool end_object() {
    if (state_ == State::tensor) {
      for (size_t i = 0; i < kFields.size(); ++i) {
        check(fields_[i], "{}: tensor {}: \"{}\" is missing", source_, name(), kFields[i]);
      }
    }
    state_ = state_ == State::top ? State::done : State::top;
    return true;
  }

  bool start_array(size_t) {
    if (state_ != State::tensor || key_ == "dtype") return unexpected("a list");
    state_ = key_ == "shape" ? State::shape : State::offsets;
    offsets_ = 0;
    return true;
  }

  bool end_array() {
    check(state_ != State::offsets || offsets_ == 2, "{}: tensor {}: \"data_offsets\" must hold two numbers",
          source_, name());
    state_ = State::tensor;
    return true;
  }

  bool parse_error(size_t position, const std::string&, const nlohmann::json::exception&) {
    fail("{}: the header is not valid JSON (byte {})", source_, position);
  }

 private:
  enum class State { start, top, metadata, tensor, shape, offsets, done };
  static constexpr std::array<std::string_view, 3> kFields = {"dtype", "shape", "data_offsets"};

  TensorEntry& tensor() { return header_.tensors.back(); }
  std::string name() { return printable(tensor().name); }
  [[noreturn]] bool unexpected(const std::string& what) {
    if (state_ == State::start) fail("{}: the header must be a JSON object, is {}", source_, printable(what));
    fail("{}: unexpected {} at \"{}\" in the header", source_, printable(what), printable(key_));
  }

  SafetensorsHeader& header_;
  const std::string& source_;
  State state_ = State::start;
  std::string key_;
  std::unordered_set<std::string> names_;
  std::array<bool, 3> fields_{};
  int offsets_ = 0;
};

/// Bytes of a tensor, overflow-checked.
uint64_t tensor_bytes(const TensorEntry& tensor, const std::string& source) {
  uint64_t bytes = uint64_t(dtype_bytes(tensor.dtype));
  for (const int64_t size : tensor.shape) {
    check(!__builtin_mul_overflow(bytes, uint64_t(size), &bytes), "{}: tensor {}: shape {} is too large",
          source, printable(tensor.name), tensor.shape_text());
  }
  return bytes;
}

/// Each tensor begins where the one before ends; the last ends with the file.
void check_layout(const std::vector<TensorEntry>& tensors, uint64_t data_bytes, const std::string& source) {
  uint64_t position = 0;
  for (const auto& t : tensors) {
    const std::string name = printable(t.name);
    check(t.begin <= t.end && t.end <= data_bytes,
          "{}: tensor {}: bytes [{}, {}) are not within the file's {} data bytes{}", source, name, t.begin,
          t.end, data_bytes, t.begin <= t.end ? " (truncated?)" : "");
    const uint64_t bytes = tensor_bytes(t, source);
    check(t.end - t.begin == bytes, "{}: tensor {}: {} {} takes {} bytes but \"data_offsets\" spans {}",
          source, name, dtype_name(t.dtype), t.shape_text(), bytes, t.end - t.begin);
    check(t.begin >= position,
          "{}: tensor {}: begins at byte {} and overlaps the tensor before it, which ends at {}", source,
          name, t.begin, position);
    check(t.begin == position, "{}: tensor {}: begins at byte {}; bytes [{}, {}) belong to no tensor", source,
          name, t.begin, position, t.begin);
    position = t.end;
  }
  check(position == data_bytes, "{}: the last tensor ends at data byte {} but the file has {}", source,
        position, data_bytes);
}

}  // namespace

int64_t dtype_bytes(Dtype dtype) {
  return kDtypes[size_t(dtype)].bytes;
}
const char* dtype_name(Dtype dtype) {
  return kDtypes[size_t(dtype)].name;
}

std::string TensorEntry::shape_text() const {
  return fmt::format("[{}]", fmt::join(shape, ", "));
}

SafetensorsHeader parse_safetensors_header(std::string_view json, uint64_t data_bytes,
                                           const std::string& source) {
  SafetensorsHeader header;
  HeaderHandler handler(header, source);
  // To the parser a NUL is the end of the text, whatever follows.
  check(json.find('\0') == std::string_view::npos, "{}: the header is not valid JSON (a NUL byte)", source);
  try {
    nlohmann::json::sax_parse(json.begin(), json.end(), &handler);
  } catch (const nlohmann::json::exception&) {
    fail("{}: the header is not valid JSON", source);
  }
  std::sort(header.tensors.begin(), header.tensors.end(),
            [](const auto& a, const auto& b) { return std::tie(a.begin, a.end) < std::tie(b.begin, b.end); });
  check_layout(header.tensors, data_bytes, source);
  return header;
}

SafetensorsFile::SafetensorsFile(const std::filesystem::path& path) : file_(MappedFile::open(path)) {
  const auto bytes = file_->bytes();
  const std::string source = path.string();
  uint64_t header_bytes = 0;
  check(bytes.size() >= sizeof(header_bytes), "{}: {} bytes are too few for a safetensors file", source,
        bytes.size());
  std::memcpy(&header_bytes, bytes.data(), sizeof(header_bytes));
  check(header_bytes <= kMaxSafetensorsHeader, "{}: header of {} bytes; at most {} are accepted", source,
        header_bytes, kMaxSafetensorsHeader);
  check(header_bytes <= bytes.size() - sizeof(header_bytes),
        "{}: header of {} bytes but the file has {} (truncated?)", source, header_bytes, bytes.size());
  const auto json = bytes.subspan(sizeof(header_bytes), header_bytes);
  data_ = bytes.subspan(sizeof(header_bytes) + header_bytes);
  header_ = parse_safetensors_header({reinterpret_cast<const char*>(json.data()), json.size()}, data_.size(),
                                     source);
  for (const auto& tensor : header_.tensors) by_name_.emplace(tensor.name, &tensor);
}

const TensorEntry* SafetensorsFile::find(const std::string& name) const {
  const auto it = by_name_.find(name);
  return it == by_name_.end() ? nullptr : it->second;
}

}  // namespace spinfer
