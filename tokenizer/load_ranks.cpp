// tokenizer.model of LLaMA 3: tiktoken's ranks, one "base64(bytes) rank" per line, the rank being the id.
#include <fmt/format.h>

#include <charconv>

#include "tokenizer/tokenizer_impl.h"

namespace spinfer {
namespace {

// Each piece is cut at every place to find its merges; the longest of LLaMA 3 is 128 spaces.
constexpr size_t kMaxRankedBytes = 256;

// The split pattern and special tokens of Meta's LLaMA 3 release, which the file does not hold.
constexpr std::string_view kSplitPattern =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr int kSpecialTokens = 256;

std::string special_token(int index) {
  switch (index) {
    case 0:
      return "<|begin_of_text|>";
    case 1:
      return "<|end_of_text|>";
    case 6:
      return "<|start_header_id|>";
    case 7:
      return "<|end_header_id|>";
    case 9:
      return "<|eot_id|>";
    default:
      break;
  }
  const int named_before = index < 6 ? 2 : index < 9 ? 4 : 5;
  return fmt::format("<|reserved_special_token_{}|>", index - named_before);
}

int base64_digit(char c) {
  if (c >= 'A' && c <= 'Z') return c - 'A';
  if (c >= 'a' && c <= 'z') return c - 'a' + 26;
  if (c >= '0' && c <= '9') return c - '0' + 52;
  return c == '+' ? 62 : c == '/' ? 63 : -1;
}

std::optional<std::string> decode_base64(std::string_view text) {
  while (text.ends_with('=')) text.remove_suffix(1);
  std::string out;
  uint32_t bits = 0;
  int count = 0;
  for (const char c : text) {
    const int digit = base64_digit(c);
    if (digit < 0) return std::nullopt;
    bits = bits << 6 | static_cast<uint32_t>(digit);
    count += 6;
    if (count >= 8) {
      count -= 8;
      out += static_cast<char>(bits >> count & 0xFF);
    }
  }
  if (out.empty()) return std::nullopt;
  return out;
}

struct RankLine {
  std::string bytes;
  int64_t rank;
};

std::optional<RankLine> parse_line(std::string_view line) {
  if (line.ends_with('\r')) line.remove_suffix(1);
  const size_t space = line.find(' ');
  if (space == std::string_view::npos) return std::nullopt;
  RankLine parsed;
  const char* end = line.data() + line.size();
  const auto [stop, error] = std::from_chars(line.data() + space + 1, end, parsed.rank);
  auto bytes = decode_base64(line.substr(0, space));
  if (error != std::errc() || stop != end || !bytes) return std::nullopt;
  parsed.bytes = std::move(*bytes);
  return parsed;
}

Vocabulary read_ranks(std::string_view content) {
  Vocabulary vocabulary;
  for (size_t number = 1; !content.empty(); ++number) {
    const std::string_view line = content.substr(0, content.find('\n'));
    content.remove_prefix(std::min(line.size() + 1, content.size()));
    if (line.empty()) continue;
    auto parsed = parse_line(line);
    if (!parsed)
      throw std::runtime_error(fmt::format("line {}: {} is not base64 and a rank", number, in_quotes(line)));
    if (parsed->bytes.size() > kMaxRankedBytes) {
      throw std::runtime_error(fmt::format("line {}: piece of {} bytes, legal are 1 ... {}", number,
                                           parsed->bytes.size(), kMaxRankedBytes));
    }
    vocabulary.add(parsed->rank, parsed->bytes, parsed->bytes, PieceKind::kText);
  }
  for (int byte = 0; byte < 256; ++byte) {
    const auto c = static_cast<char>(byte);
    if (!vocabulary.find({&c, 1})) throw std::runtime_error(fmt::format("byte 0x{:02x} has no rank", byte));
  }
  return vocabulary;
}

// tiktoken joins two neighbours when their joint bytes have a rank, lowest first: every cut of every piece
// into two pieces is a merge.
MergeTable merges_of(const Vocabulary& vocabulary) {
  MergeTable merges(size_t{2} * vocabulary.size());
  for (int32_t id = 0; id < vocabulary.size(); ++id) {
    const std::string_view bytes = vocabulary.bytes(id);
    for (size_t cut = 1; cut < bytes.size(); ++cut) {
      const auto left = vocabulary.find(bytes.substr(0, cut));
      if (!left) continue;
      const auto right = vocabulary.find(bytes.substr(cut));
      if (right) merges.insert(*left, *right, {static_cast<uint32_t>(id), id});
    }
  }
  return merges;
}

}  // namespace

bool is_ranks_file(std::string_view content) {
  return parse_line(content.substr(0, content.find('\n'))).has_value();
}

std::unique_ptr<TokenizerImpl> load_ranks(const TokenizerFile& file, const FileSet& files,
                                          const TokenizerHints& hints) {
  const SpecialTokenFiles special = SpecialTokenFiles::read(files);
  return naming_file(file.path, [&] {
    Vocabulary vocabulary = read_ranks(file.content);
    MergeTable merges = merges_of(vocabulary);
    const int32_t first_special = vocabulary.size();
    for (int i = 0; i < kSpecialTokens; ++i) {
      vocabulary.add(first_special + i, special_token(i), special_token(i), PieceKind::kSpecial);
    }
    std::vector<AddedToken> added = special.apply(vocabulary);
    TextPipeline pipeline;
    pipeline.add(SplitStep{SplitRegex::compile(kSplitPattern, false)});
    BpeModel model(vocabulary, std::move(pipeline), std::move(merges),
                   {.byte_level = true, .ignore_merges = true});
    const FileDefaults defaults{first_special, true, {first_special + 1, first_special + 9}};
    return assemble(file, std::move(vocabulary), std::move(added), std::move(model), {}, defaults, special,
                    hints);
  });
}

}  // namespace spinfer
