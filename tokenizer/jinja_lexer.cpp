#include <fmt/format.h>

#include <algorithm>
#include <charconv>

#include "tokenizer/chat_template.h"
#include "tokenizer/jinja_syntax.h"

namespace spinfer::jinja {
namespace {

constexpr size_t kMaxTokens = 200'000;

bool is_space(char c) {
  return c == ' ' || c == '\t' || c == '\n' || c == '\r' || c == '\v' || c == '\f';
}
bool is_digit(char c) {
  return c >= '0' && c <= '9';
}
bool is_name_start(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_';
}

void append_utf8(uint32_t code, std::string& out) {
  const auto last = [&](int shift) { out += char(0x80 | (code >> shift & 0x3f)); };
  if (code < 0x80) {
    out += char(code);
  } else if (code < 0x800) {
    out += char(0xc0 | code >> 6);
    last(0);
  } else if (code < 0x10000) {
    out += char(0xe0 | code >> 12);
    last(6);
    last(0);
  } else {
    out += char(0xf0 | code >> 18);
    last(12);
    last(6);
    last(0);
  }
}

class Lexer {
 public:
  explicit Lexer(std::string_view source) {
    for (size_t i = 0; i < source.size(); ++i) {
      const bool carriage = source[i] == '\r';
      source_ += carriage ? '\n' : source[i];
      if (carriage && i + 1 < source.size() && source[i + 1] == '\n') ++i;
    }
    if (source_.ends_with('\n')) source_.pop_back();
  }

  std::vector<Token> run() {
    while (at_ < source_.size()) {
      const size_t tag = next_tag();
      const bool is_end = tag == source_.size();
      add_text(tag, is_end ? '\0' : source_[tag + 1]);
      if (is_end) break;
      read_tag();
    }
    tokens_.push_back({TokenKind::end, "end of the template", line_});
    return std::move(tokens_);
  }

 private:
  size_t next_tag() const {
    for (size_t i = at_; i + 1 < source_.size(); ++i) {
      if (source_[i] == '{' && (source_[i + 1] == '{' || source_[i + 1] == '%' || source_[i + 1] == '#'))
        return i;
    }
    return source_.size();
  }

  /// The text up to `tag`, less what the tag's own whitespace control takes from it.
  void add_text(size_t tag, char kind) {
    std::string_view text = std::string_view(source_).substr(at_, tag - at_);
    const char sign = tag + 2 < source_.size() ? source_[tag + 2] : '\0';
    const size_t lines = size_t(std::count(text.begin(), text.end(), '\n'));
    if (kind != '\0' && sign == '-') {
      while (!text.empty() && is_space(text.back())) text.remove_suffix(1);
    } else if ((kind == '%' || kind == '#') && sign != '+') {
      const size_t newline = text.rfind('\n');
      const size_t line_start = newline == std::string_view::npos ? 0 : newline + 1;
      if ((line_start > 0 || line_starting_) && std::ranges::all_of(text.substr(line_start), is_space))
        text = text.substr(0, line_start);
    }
    if (!text.empty()) push(TokenKind::text, std::string(text));
    line_ += int(lines);
    at_ = tag;
  }

  void read_tag() {
    const char kind = source_[at_ + 1];
    at_ += 2;
    if (kind == '#') return skip_comment();
    push(kind == '%' ? TokenKind::block_begin : TokenKind::print_begin, kind == '%' ? "{%" : "{{");
    if (at_ < source_.size() && (source_[at_] == '-' || source_[at_] == '+')) ++at_;
    const std::string close = kind == '%' ? "%}" : "}}";
    std::vector<char> brackets;  // a '}' inside a dictionary does not end the tag
    for (;;) {
      skip_spaces();
      if (at_ >= source_.size()) fail_at(line_, fmt::format("'{}' is missing", close));
      if (brackets.empty() && end_tag(close, kind == '%')) return;
      read_token(brackets);
    }
  }

  /// True, and past it, if the tag ends here.
  bool end_tag(const std::string& close, bool is_block) {
    const char sign = source_[at_];
    const bool signed_end =
        (sign == '-' || (is_block && sign == '+')) && source_.compare(at_ + 1, 2, close) == 0;
    if (!signed_end && source_.compare(at_, 2, close) != 0) return false;
    push(is_block ? TokenKind::block_end : TokenKind::print_end, close);
    at_ += signed_end ? 3 : 2;
    trim_after(signed_end ? sign : '\0', is_block);
    return true;
  }

  /// Whitespace control of the end of a tag: "-" takes all white space; blocks take one newline unless "+".
  void trim_after(char sign, bool takes_newline) {
    const size_t before = at_;
    if (sign == '-') {
      skip_spaces();
    } else if (sign != '+' && takes_newline && at_ < source_.size() && source_[at_] == '\n') {
      ++at_;
      ++line_;
    }
    line_starting_ = at_ > before && source_[at_ - 1] == '\n';
  }

  void skip_comment() {
    const size_t end = source_.find("#}", at_);
    if (end == std::string::npos) fail_at(line_, "'#}' is missing");
    line_ += int(std::count(source_.begin() + long(at_), source_.begin() + long(end), '\n'));
    const char sign = end > at_ ? source_[end - 1] : '\0';
    at_ = end + 2;
    trim_after(sign == '-' || sign == '+' ? sign : '\0', true);
  }

  void skip_spaces() {
    for (; at_ < source_.size() && is_space(source_[at_]); ++at_) line_ += source_[at_] == '\n';
  }

  void read_token(std::vector<char>& brackets) {
    const char c = source_[at_];
    if (c == '"' || c == '\'') return push(TokenKind::string, read_string());
    if (is_digit(c)) return read_number();
    if (is_name_start(c)) {
      size_t end = at_;
      while (end < source_.size() && (is_name_start(source_[end]) || is_digit(source_[end]))) ++end;
      push(TokenKind::name, source_.substr(at_, end - at_));
      at_ = end;
      return;
    }
    for (const std::string_view symbol :
         {"//", "**", "==", "!=", "<=", ">=", "+", "-", "*", "/", "%", "~", "<",
          ">",  "=",  ".",  ":",  "|",  ",",  "(", ")", "[", "]", "{", "}", ";"}) {
      if (source_.compare(at_, symbol.size(), symbol) != 0) continue;
      if (symbol == "(" || symbol == "[" || symbol == "{") brackets.push_back(c);
      if ((symbol == ")" || symbol == "]" || symbol == "}") && !brackets.empty()) brackets.pop_back();
      push(TokenKind::symbol, std::string(symbol));
      at_ += symbol.size();
      return;
    }
    fail_at(line_, fmt::format("character 0x{:02x} in an expression", uint8_t(c)));
  }

  void read_number() {
    size_t end = at_;
    bool decimal = false;
    while (end < source_.size() && (is_digit(source_[end]) || source_[end] == '_')) ++end;
    if (end + 1 < source_.size() && source_[end] == '.' && is_digit(source_[end + 1])) {
      decimal = true;
      for (++end; end < source_.size() && is_digit(source_[end]);) ++end;
    }
    std::string digits = source_.substr(at_, end - at_);
    std::erase(digits, '_');
    push(decimal ? TokenKind::decimal : TokenKind::integer, digits);
    at_ = end;
  }

  std::string read_string() {
    const char quote = source_[at_++];
    std::string text;
    for (; at_ < source_.size() && source_[at_] != quote; ++at_) {
      line_ += source_[at_] == '\n';
      source_[at_] == '\\' ? read_escape(text) : text.push_back(source_[at_]);
    }
    if (at_ >= source_.size()) fail_at(line_, "a string does not end");
    ++at_;
    return text;
  }

  /// Python's escapes; an unknown one stays as written.
  void read_escape(std::string& text) {
    if (++at_ >= source_.size()) fail_at(line_, "a string does not end");
    const char c = source_[at_];
    constexpr std::string_view kNames = "abfnrtv\\'\"0", kBytes("\a\b\f\n\r\t\v\\'\"\0", 11);
    if (const size_t known = kNames.find(c); known != std::string_view::npos) {
      text += kBytes[known];
      return;
    }
    const size_t digits = c == 'x' ? 2 : c == 'u' ? 4 : c == 'U' ? 8 : 0;
    if (c == '\n') return;
    if (digits == 0) {
      text += '\\';
      text += c;
      return;
    }
    uint32_t code = 0;
    const char* first = source_.data() + at_ + 1;
    const bool room = at_ + digits < source_.size();
    const auto [end, error] = std::from_chars(first, room ? first + digits : first, code, 16);
    if (error != std::errc() || end != first + digits || code > 0x10ffff || (code >= 0xd800 && code < 0xe000))
      fail_at(line_, fmt::format("\\{} needs {} hexadecimal digits of a character", c, digits));
    append_utf8(code, text);
    at_ += digits;
  }

  void push(TokenKind kind, std::string text) {
    if (tokens_.size() >= kMaxTokens) fail_at(line_, fmt::format("more than {} tokens", kMaxTokens));
    tokens_.push_back({kind, std::move(text), line_});
  }

  std::string source_;
  size_t at_ = 0;
  int line_ = 1;
  bool line_starting_ = true;  // what was read last ended with a newline
  std::vector<Token> tokens_;
};

}  // namespace

std::vector<Token> tokenize(std::string_view source) {
  return Lexer(source).run();
}

void fail_at(int line, std::string_view problem) {
  std::string message = fmt::format("chat template line {}: {}", line, problem);
  std::ranges::replace_if(
      message, [](char c) { return uint8_t(c) < 0x20; }, ' ');  // names may be any text
  throw ChatTemplateError(message);
}

}  // namespace spinfer::jinja
