// Normalization rules of SentencePiece models: sound ones work, damaged ones are refused before the library
// sees them.
#include "tokenizer/charsmap_check.h"

#include <gtest/gtest.h>

#include <functional>

#include "tests/tokenizer/sample_tokenizers.h"

namespace spinfer {
namespace {

// A double array in which "a", "aa", "aaa", ... up to `depth` letters are replaced by `replacement`. Node d
// has its children in the d-th block of 256 units.
struct Charsmap {
  std::vector<uint32_t> units;
  std::string replacements = std::string("b\0", 2);

  explicit Charsmap(uint32_t depth) : units(256 * (depth + 2)) {
    for (uint32_t i = 0; i < units.size(); ++i)
      units[i] = (i & 0xFF) ^ 1;  // a label that no byte finds there
    units[0] = 256 << 10;
    for (uint32_t d = 1; d <= depth; ++d) {
      const uint32_t node = 256 * d + 'a', children = 256 * (d + 1);
      units[node] = (node ^ children) << 10 | 1 << 8 | 'a';
      units[children] = 1u << 31;  // value 0: the replacement at offset 0
    }
  }

  std::string bytes() const {
    const auto u32 = [](uint32_t v) { return std::string(reinterpret_cast<const char*>(&v), 4); };
    std::string out = u32(static_cast<uint32_t>(4 * units.size()));
    for (const uint32_t unit : units) out += u32(unit);
    return out + replacements;
  }
};

// A single rule for `depth` letters; with `entry`, the letter "B" leads to the node of that depth at once,
// and is met first.
std::string one_rule(uint32_t depth, uint32_t entry = 0) {
  Charsmap c(depth);
  for (uint32_t d = 1; d < depth; ++d) {
    c.units[256 * d + 'a'] &= ~(1u << 8);
    c.units[256 * (d + 1)] = 1;  // no value
  }
  if (entry > 0) {
    const uint32_t node = 256 + 'B', children = 256 * (entry + 1);
    c.units[node] = (node ^ children) << 10 | 'B';
  }
  return c.bytes();
}

TEST(Charsmap, SoundRulesAreApplied) {
  sample::ProtoOptions options;
  options.charsmap = Charsmap(2).bytes();
  const Tokenizer tokenizer =
      sample::load({{"tokenizer.model", sample::model_proto(sample::llama_pieces(), options)}});
  const auto id = [&](std::string_view piece) { return tokenizer.id_of(piece).value(); };
  EXPECT_EQ(tokenizer.encode("aaac", false), (std::vector<int32_t>{id("\u2581"), id("b"), id("b"), id("c")}));
}

TEST(Charsmap, DamagedRulesAreRefused) {
  struct Row {
    const char* name;
    std::function<std::string()> make;
    const char* message;
  };
  const std::vector<Row> rows = {
      {"too short", [] { return std::string("\1\0", 2); }, "truncated"},
      {"no trie", [] { return std::string(4, '\0') + "b" + '\0'; }, "empty"},
      {"trie longer than the file", [] { return std::string("\xFF\xFF\xFF\x7F") + "abc"; }, "trie says"},
      {"not NUL-terminated",
       [] {
         auto c = Charsmap(1);
         c.replacements = "b";
         return c.bytes();
       },
       "NUL"},
      {"root outside",
       [] {
         auto c = Charsmap(1);
         c.units[0] = 1u << 30;
         return c.bytes();
       },
       "outside the trie"},
      {"node outside",
       [] {
         auto c = Charsmap(1);
         c.units[256 + 'a'] = 1u << 30 | 'a';
         return c.bytes();
       },
       "outside the trie"},
      {"last block cut",
       [] {
         auto c = Charsmap(1);
         c.units.resize(600);
         return c.bytes();
       },
       "outside the trie"},
      {"value outside",
       [] {
         auto c = Charsmap(1);
         c.units[512] = 1u << 31 | 2;
         return c.bytes();
       },
       "outside the 2 bytes"},
      {"loop",
       [] {
         auto c = Charsmap(1);
         c.units[256 + 'a'] = 'a' << 10 | 'a';
         return c.bytes();
       },
       "loop"},
      {"33 rules nested", [] { return Charsmap(33).bytes(); }, "prefixes of each other"},
      {"long replacement",
       [] {
         auto c = Charsmap(1);
         c.replacements = std::string(129, 'b') + '\0';
         return c.bytes();
       },
       "a rule would insert 129 bytes"},
      {"long rule", [] { return one_rule(129); }, "a rule would replace 129 bytes"},
      // The lower part is counted before the way down through the upper one.
      {"long rule in two parts", [] { return one_rule(150, 100); }, "a rule would replace 129 bytes"},
      {"too large", [] { return std::string(5 << 20, '\0'); }, "legal are at most"},
  };
  for (const Row& row : rows) {
    const std::string map = row.make();
    try {
      check_charsmap(map);
      ADD_FAILURE() << row.name << " was accepted";
    } catch (const std::runtime_error& e) {
      EXPECT_NE(std::string(e.what()).find(row.message), std::string::npos) << row.name << ": " << e.what();
    }
    sample::ProtoOptions options;
    options.charsmap = map;
    EXPECT_NE(sample::load_error({{"tokenizer.model", sample::model_proto(sample::llama_pieces(), options)}}),
              "");
  }
  EXPECT_NO_THROW(check_charsmap(Charsmap(32).bytes()));
  EXPECT_NO_THROW(check_charsmap(one_rule(128)));
  auto longest = Charsmap(1);
  longest.replacements = std::string(128, 'b') + '\0';
  EXPECT_NO_THROW(check_charsmap(longest.bytes()));
}

}  // namespace
}  // namespace spinfer
