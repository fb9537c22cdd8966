#include "tokenizer/charsmap_check.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <vector>

namespace spinfer {
namespace {

constexpr size_t kMaxCharsmapBytes = 4 << 20;
constexpr int kMaxNestedRules = 32;  // Normalizer::kMaxTrieResultsSize of the library
// What a rule may replace, and by what: longer ones would make normalizing slow, or its result huge. The
// longest of the library's own rules have 10 and 33 bytes.
constexpr size_t kMaxRuleBytes = 128;

[[noreturn]] void fail(std::string_view problem) {
  throw std::runtime_error(fmt::format("normalization rules: {}", problem));
}

uint32_t read_u32(std::string_view bytes, size_t index) {
  uint32_t value;
  std::memcpy(&value, bytes.data() + 4 * index, 4);
  return value;
}

// One unit of a darts-clone double array.
struct Unit {
  uint32_t bits;
  uint32_t label() const { return bits & 0x800000FFu; }  // the top bit marks a value, which no byte matches
  bool has_value() const { return (bits >> 8) & 1; }
  uint32_t offset() const { return (bits >> 10) << ((bits & (1u << 9)) >> 6); }
  uint32_t value() const { return bits & 0x7FFFFFFFu; }
};

// Walks every node that some text can reach.
class TrieCheck {
 public:
  TrieCheck(std::string_view trie, std::string_view replacements)
      : trie_(trie), size_(trie.size() / 4), replacements_(replacements), below_(size_, {kUnseen, 0}) {}

  void run() {
    if (size_ == 0) fail("the trie is empty");
    enter(0);
    while (!path_.empty()) {
      Frame& frame = path_.back();
      if (frame.next_byte == 256) {
        leave();
        continue;
      }
      const uint32_t byte = frame.next_byte++;
      const size_t child = frame.base ^ byte;
      if (unit(child).label() != byte) continue;
      if (below_[child].rules == kOnPath) fail("the trie has a loop");
      if (below_[child].rules == kUnseen) {
        enter(child);
      } else {
        frame.add_child(below_[child]);
      }
    }
  }

 private:
  static constexpr int8_t kUnseen = -1, kOnPath = -2;
  struct Depth {
    int8_t rules;  // most on any way down from here, or kUnseen, kOnPath
    uint8_t bytes;
  };
  struct Frame {
    size_t node;
    size_t base;  // children are at base ^ byte
    uint32_t next_byte;
    Depth deepest;
    void add_child(Depth child) {
      deepest.rules = std::max(deepest.rules, child.rules);
      deepest.bytes = std::max<uint8_t>(deepest.bytes, child.bytes + 1);
    }
  };

  Unit unit(size_t node) const { return {read_u32(trie_, node)}; }

  void enter(size_t node) {
    const size_t base = node ^ unit(node).offset();
    if ((base | 0xFF) >= size_) fail(fmt::format("unit {} points outside the trie of {} units", node, size_));
    // The library reads a value only below nodes reached by a byte, never at the root.
    if (node != 0 && unit(node).has_value()) check_replacement(base);
    // The nodes below may have been counted already: leave() checks the sum.
    if (path_.size() > kMaxRuleBytes) fail_length("replace", path_.size());
    below_[node].rules = kOnPath;
    path_.push_back({node, base, 0, {0, 0}});
  }

  void check_replacement(size_t at) const {
    const size_t begin = unit(at).value();
    if (begin >= replacements_.size()) {
      fail(fmt::format("unit {} points outside the {} bytes of replacements", at, replacements_.size()));
    }
    const size_t length = replacements_.substr(begin, kMaxRuleBytes + 1).find('\0');
    if (length == std::string_view::npos) fail_length("insert", kMaxRuleBytes + 1);
  }

  [[noreturn]] static void fail_length(std::string_view what, size_t bytes) {
    fail(fmt::format("a rule would {} {} bytes or more, legal are at most {}", what, bytes, kMaxRuleBytes));
  }

  void leave() {
    const Frame done = path_.back();
    path_.pop_back();
    const int rules = done.deepest.rules + (unit(done.node).has_value() ? 1 : 0);
    if (rules > kMaxNestedRules)
      fail(fmt::format("more than {} rules are prefixes of each other", kMaxNestedRules));
    if (done.deepest.bytes > kMaxRuleBytes) fail_length("replace", done.deepest.bytes);
    below_[done.node] = {static_cast<int8_t>(rules), done.deepest.bytes};
    if (!path_.empty()) path_.back().add_child(below_[done.node]);
  }

  std::string_view trie_;
  size_t size_;
  std::string_view replacements_;
  std::vector<Depth> below_;
  std::vector<Frame> path_;
};

}  // namespace

void check_charsmap(std::string_view charsmap) {
  if (charsmap.size() > kMaxCharsmapBytes) {
    fail(fmt::format("{} bytes, legal are at most {}", charsmap.size(), kMaxCharsmapBytes));
  }
  if (charsmap.size() < 4) fail("truncated");
  const size_t trie_bytes = read_u32(charsmap, 0);
  const std::string_view rest = charsmap.substr(4);
  if (trie_bytes >= rest.size() || trie_bytes % 4 != 0) {
    fail(fmt::format("the trie says it has {} bytes of {}", trie_bytes, rest.size()));
  }
  const std::string_view replacements = rest.substr(trie_bytes);
  if (replacements.back() != '\0') fail("the replacements do not end with NUL");
  TrieCheck(rest.substr(0, trie_bytes), replacements).run();
}

}  // namespace spinfer
