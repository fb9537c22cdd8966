#include "tokenizer/tokenizer.h"

#include <fmt/format.h>

#include <algorithm>

#include "tokenizer/tokenizer_impl.h"

namespace spinfer {
namespace {

// Positions inside the models are 32-bit.
constexpr size_t kMaxTextBytes = size_t{1} << 30;

std::unique_ptr<TokenizerImpl> load_impl(const FileSet& files, const TokenizerHints& hints) {
  if (const TokenizerFile* file = files.find("tokenizer.json"))
    return load_tokenizer_json(*file, files, hints);
  if (const TokenizerFile* file = files.find("tokenizer.model")) {
    if (file->content.empty()) fail_file(file->path, "is empty");
    return is_ranks_file(file->content) ? load_ranks(*file, files, hints)
                                        : load_sentencepiece(*file, files, hints);
  }
  for (const std::string prefix : {"", "gpt2-"}) {
    const TokenizerFile* vocab = files.find(prefix + "vocab.json");
    const TokenizerFile* merges = files.find(prefix + "merges.txt");
    if (vocab != nullptr && merges != nullptr) return load_vocab_merges(*vocab, *merges, files, hints);
    if (vocab != nullptr) fail_file(vocab->path, fmt::format("needs {}merges.txt beside it", prefix));
    if (merges != nullptr) fail_file(merges->path, fmt::format("needs {}vocab.json beside it", prefix));
  }
  fail_file(files.dir(), fmt::format("no tokenizer: looked for {}", kTokenizerFiles));
}

std::optional<int64_t> most_bytes_per_id(const Vocabulary& vocabulary, const std::vector<AddedToken>& added,
                                         const TokenizerImpl::Model& model) {
  for (const AddedToken& token : added)
    if (token.lstrip || token.rstrip) return std::nullopt;
  std::optional<int64_t> shrinking = 1;
  if (const auto* bpe = std::get_if<BpeModel>(&model)) {
    shrinking = bpe->most_shrinking();
  } else if (!std::get<SentencePieceModel>(model).keeps_all_text()) {
    shrinking = std::nullopt;
  }
  if (!shrinking) return std::nullopt;
  size_t longest = 1;
  for (int32_t id = 0; id < vocabulary.size(); ++id)
    longest = std::max({longest, vocabulary.bytes(id).size(), vocabulary.piece(id).size()});
  return *shrinking * int64_t(longest);
}

}  // namespace

void add_merge(const Vocabulary& vocabulary, uint32_t rank, std::string_view left, std::string_view right,
               MergeTable& table) {
  const auto id_of = [&](std::string_view piece) {
    const auto id = vocabulary.find(piece);
    if (!id) throw std::runtime_error(fmt::format("piece {} is not in the vocabulary", in_quotes(piece)));
    return *id;
  };
  const int32_t left_id = id_of(left), right_id = id_of(right);
  const int32_t result = id_of(std::string(left).append(right));
  if (vocabulary.kind(result) == PieceKind::kText) table.insert(left_id, right_id, {rank, result});
}

std::unique_ptr<TokenizerImpl> assemble(const TokenizerFile& file, Vocabulary vocabulary,
                                        std::vector<AddedToken> added, TokenizerImpl::Model model,
                                        DecodeRules decode, const FileDefaults& defaults,
                                        const SpecialTokenFiles& special, const TokenizerHints& hints) {
  const int32_t pieces = vocabulary.size();
  if (pieces == 0) fail_file(file.path, "has no pieces");
  if (hints.vocab_size > 0 && pieces > hints.vocab_size) {
    fail_file(file.path,
              fmt::format("has {} pieces, the model's vocabulary only {} rows", pieces, hints.vocab_size));
  }
  const auto id_named = [&](const std::optional<std::string>& name) {
    return name ? vocabulary.find(*name) : std::nullopt;
  };
  std::optional<int32_t> bos = defaults.bos;
  if (!bos) bos = id_named(special.bos);
  if (!bos && hints.bos_id >= 0) bos = hints.bos_id;
  std::vector<int32_t> eos = hints.eos_ids;
  if (eos.empty()) {
    const auto named = id_named(special.eos);
    eos = named ? std::vector<int32_t>{*named} : defaults.eos;
  }
  const auto most_bytes = most_bytes_per_id(vocabulary, added, model);
  return std::make_unique<TokenizerImpl>(TokenizerImpl{
      .vocabulary = std::move(vocabulary),
      .added = AddedTokens(std::move(added)),
      .model = std::move(model),
      .decode = decode,
      .rows = std::max(pieces, hints.vocab_size),
      .bos = bos,
      .adds_bos = bos && special.add_bos.value_or(defaults.adds_bos),
      .eos = std::move(eos),
      .most_bytes_per_id = most_bytes,
  });
}

void TokenizerImpl::encode_segment(std::string_view text, bool at_start, std::vector<int32_t>& out) const {
  if (const auto* bpe = std::get_if<BpeModel>(&model)) {
    bpe->encode(text, at_start, out);
  } else {
    std::get<SentencePieceModel>(model).encode(text, at_start, out);
  }
}

std::string_view TokenizerImpl::decoded_bytes(int32_t id, bool keep_special, bool& at_start) const {
  if (id < 0 || id >= rows) {
    throw std::runtime_error(
        fmt::format("token id {} is outside the vocabulary, legal are 0 ... {}", id, rows - 1));
  }
  if (id >= vocabulary.size()) return {};
  const PieceKind kind = vocabulary.kind(id);
  if (kind == PieceKind::kAbsent || (kind == PieceKind::kSpecial && !keep_special)) return {};
  std::string_view bytes = vocabulary.bytes(id);
  if (!at_start) return bytes;
  at_start = false;
  if (kind == PieceKind::kText && decode.drop_first_space && bytes.starts_with(' ')) {
    bytes.remove_prefix(1);
    at_start = decode.drop_all_spaces && bytes.empty();
  }
  return bytes;
}

Tokenizer::Tokenizer(std::unique_ptr<TokenizerImpl> impl) : impl_(std::move(impl)) {}
Tokenizer::Tokenizer(Tokenizer&&) noexcept = default;
Tokenizer& Tokenizer::operator=(Tokenizer&&) noexcept = default;
Tokenizer::~Tokenizer() = default;

Tokenizer Tokenizer::load(const std::filesystem::path& dir, const TokenizerHints& hints) {
  return from_files(FileSet::read(dir), hints);
}

Tokenizer Tokenizer::from_files(const FileSet& files, const TokenizerHints& hints) {
  return Tokenizer(load_impl(files, hints));
}

bool Tokenizer::present(const std::filesystem::path& dir) {
  constexpr const char* kMainFiles[] = {"tokenizer.json",  "tokenizer.model", "vocab.json",
                                        "gpt2-vocab.json", "merges.txt",      "gpt2-merges.txt"};
  std::error_code error;
  return std::any_of(std::begin(kMainFiles), std::end(kMainFiles),
                     [&](const char* name) { return std::filesystem::exists(dir / name, error); });
}

std::vector<int32_t> Tokenizer::encode(std::string_view text, bool add_bos, bool parse_special) const {
  if (text.size() > kMaxTextBytes) {
    throw std::runtime_error(
        fmt::format("text of {} bytes, at most {} can be encoded", text.size(), kMaxTextBytes));
  }
  std::string repaired;
  if (!is_valid_utf8(text)) text = repaired = replace_invalid_utf8(text);
  std::vector<int32_t> ids;
  if (add_bos && impl_->adds_bos) ids.push_back(*impl_->bos);
  bool at_start = true;
  for (const auto& segment : impl_->added.split(text, parse_special)) {
    if (segment.token != nullptr) {
      ids.push_back(segment.token->id);
    } else {
      impl_->encode_segment(segment.text, at_start, ids);
    }
    at_start = false;
  }
  return ids;
}

std::optional<int64_t> Tokenizer::most_bytes(int64_t tokens) const {
  const auto each = impl_->most_bytes_per_id;
  return each ? std::optional(*each * tokens) : std::nullopt;
}

std::string Tokenizer::decode(std::span<const int32_t> ids, bool keep_special) const {
  std::string text, pending;
  bool at_start = true;
  for (const int32_t id : ids) {
    take_complete_chars(pending, impl_->decoded_bytes(id, keep_special, at_start),
                        impl_->decode.invalid_bytes, text);
  }
  flush_incomplete_char(pending, impl_->decode.invalid_bytes, text);
  return text;
}

std::string Tokenizer::piece_bytes(int32_t id) const {
  bool at_start = false;
  return std::string(impl_->decoded_bytes(id, true, at_start));
}

int32_t Tokenizer::vocab_size() const {
  return impl_->vocabulary.size();
}
std::optional<int32_t> Tokenizer::bos_id() const {
  return impl_->bos;
}
bool Tokenizer::adds_bos() const {
  return impl_->adds_bos;
}
const std::vector<int32_t>& Tokenizer::eos_ids() const {
  return impl_->eos;
}
std::optional<int32_t> Tokenizer::id_of(std::string_view piece) const {
  return impl_->vocabulary.find(piece);
}

bool Tokenizer::is_special(int32_t id) const {
  return id >= 0 && id < vocab_size() && impl_->vocabulary.kind(id) == PieceKind::kSpecial;
}

}  // namespace spinfer
