#include "tokenizer/split_regex.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <limits>
#include <stdexcept>

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include "tokenizer/file_set.h"

namespace spinfer {
namespace {

constexpr size_t kMaxPatternBytes = 8 << 10;
// Steps one match may take. Usual patterns go back over a run of white space once, a step per character; a
// pattern that backtracks more is refused, on texts below 1 MB after some 0.2 s at the worst.
uint32_t match_limit(size_t text_bytes) {
  return static_cast<uint32_t>(
      std::min<size_t>(1'000'000 + 4 * text_bytes, std::numeric_limits<uint32_t>::max()));
}
constexpr uint32_t kHeapLimitKiB = 64 << 10;

constexpr std::chrono::microseconds kTimeBase = std::chrono::seconds(5);
constexpr std::chrono::microseconds kTimePerByte{20};

struct FreeMatchData {
  void operator()(pcre2_match_data* p) const { pcre2_match_data_free(p); }
};
struct FreeMatchContext {
  void operator()(pcre2_match_context* p) const { pcre2_match_context_free(p); }
};

// Unicode's White_Space, which is what \s means in Python, Rust and Oniguruma. PCRE2's \s also matches
// U+180E.
constexpr std::string_view kWhiteSpace =
    R"(\t-\r \x{85}\x{a0}\x{1680}\x{2000}-\x{200a}\x{2028}\x{2029}\x{202f}\x{205f}\x{3000})";

// Writes \s and \S of `pattern` out as classes. \S inside a class is left to PCRE2: it cannot be written out
// there.
std::string with_unicode_space(std::string_view pattern) {
  std::string out;
  bool in_class = false;
  for (size_t i = 0; i < pattern.size(); ++i) {
    const char c = pattern[i];
    if (c == '\\' && i + 1 < pattern.size()) {
      const char escaped = pattern[++i];
      if (escaped == 's' || (escaped == 'S' && !in_class)) {
        out +=
            fmt::format(fmt::runtime(in_class ? "{1}" : "[{0}{1}]"), escaped == 'S' ? "^" : "", kWhiteSpace);
      } else {
        out += c;
        out += escaped;
      }
      continue;
    }
    if (c == '[') in_class = true;
    if (c == ']') in_class = false;
    out += c;
  }
  return out;
}

std::string message_of(int error) {
  unsigned char buffer[256];
  const int length = pcre2_get_error_message(error, buffer, sizeof buffer);
  return length < 0 ? fmt::format("error {}", error) : std::string(reinterpret_cast<char*>(buffer), length);
}

}  // namespace

void SplitRegex::FreeCode::operator()(pcre2_real_code_8* code) const {
  pcre2_code_free(code);
}

SplitRegex SplitRegex::compile(std::string_view pattern, bool literal) {
  if (pattern.empty() || pattern.size() > kMaxPatternBytes) {
    throw std::runtime_error(
        fmt::format("split pattern has {} bytes, legal are 1 ... {}", pattern.size(), kMaxPatternBytes));
  }
  // Without \C a match cannot end in the middle of a character.
  const uint32_t options = PCRE2_UTF | (literal ? PCRE2_LITERAL : PCRE2_UCP | PCRE2_NEVER_BACKSLASH_C);
  const std::string source = literal ? std::string(pattern) : with_unicode_space(pattern);
  int error = 0;
  size_t offset = 0;
  SplitRegex regex;
  regex.code_.reset(pcre2_compile(reinterpret_cast<PCRE2_SPTR>(source.data()), source.size(), options, &error,
                                  &offset, nullptr));
  if (!regex.code_) {
    throw std::runtime_error(fmt::format("split pattern {}: {}", in_quotes(pattern), message_of(error)));
  }
  // Without JIT (not supported, or out of executable memory) pcre2_match interprets: slower, the same result.
  (void)pcre2_jit_compile(regex.code_.get(), PCRE2_JIT_COMPLETE);
  return regex;
}

SplitRegex::Deadline SplitRegex::deadline(size_t text_bytes) {
  return std::chrono::steady_clock::now() + kTimeBase + kTimePerByte * text_bytes;
}

std::vector<SplitRegex::Match> SplitRegex::find_all(std::string_view text, Deadline deadline) const {
  std::unique_ptr<pcre2_match_data, FreeMatchData> data(pcre2_match_data_create(1, nullptr));
  std::unique_ptr<pcre2_match_context, FreeMatchContext> context(pcre2_match_context_create(nullptr));
  if (!data || !context) throw std::bad_alloc();
  pcre2_set_match_limit(context.get(), match_limit(text.size()));
  pcre2_set_heap_limit(context.get(), kHeapLimitKiB);

  const auto* subject = reinterpret_cast<PCRE2_SPTR>(text.data());
  const size_t* span = pcre2_get_ovector_pointer(data.get());
  std::vector<Match> matches;
  const uint32_t options = PCRE2_NO_UTF_CHECK | PCRE2_NOTEMPTY;
  for (size_t from = 0; from < text.size();) {
    if (matches.size() % 32 == 0 && std::chrono::steady_clock::now() > deadline)
      throw std::runtime_error("the tokenizer's split pattern takes too long");
    int rc = pcre2_match(code_.get(), subject, text.size(), from, options, data.get(), context.get());
    if (rc == PCRE2_ERROR_JIT_STACKLIMIT) {
      rc = pcre2_match(code_.get(), subject, text.size(), from, options | PCRE2_NO_JIT, data.get(),
                       context.get());
    }
    if (rc == PCRE2_ERROR_NOMATCH) break;
    if (rc < 0) throw std::runtime_error(fmt::format("the tokenizer's split pattern: {}", message_of(rc)));
    // \K in a hostile pattern may report a match that begins before the place searched from, or after its
    // end.
    if (span[0] < from || span[1] <= span[0])
      throw std::runtime_error("the tokenizer's split pattern moves backwards");
    matches.push_back({span[0], span[1]});
    from = span[1];
  }
  return matches;
}

}  // namespace spinfer
