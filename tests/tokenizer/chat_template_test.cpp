// Chat templates against what transformers renders (scripts/make_chat_goldens.py), and what is refused.
#include "tokenizer/chat_template.h"
#include "tests/test_paths.h"

#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>

#include "tests/temporary_directory.h"
#include "tests/tokenizer/sample_tokenizers.h"
#include "tokenizer/file_set.h"
#include "tokenizer/tokenizer.h"

namespace spinfer {
namespace {

using nlohmann::json;

ChatTemplate make(const std::string& source) {
  return ChatTemplate(source, "<s>", "</s>");
}

std::string render(const std::string& source, std::vector<ChatMessage> messages = {{"user", "Hi"}}) {
  return make(source).render(messages, true);
}

/// The message of the refusal; fails the test if there is none.
std::string refusal(const std::string& source, std::vector<ChatMessage> messages = {{"user", "Hi"}}) {
  try {
    const std::string text = render(source, std::move(messages));
    ADD_FAILURE() << source.substr(0, 200) << " gave " << text.substr(0, 200);
  } catch (const ChatTemplateError& error) {
    EXPECT_EQ(std::string(error.what()).find('\n'), std::string::npos);
    return error.what();
  }
  return {};
}

TEST(ChatTemplate, RendersAsTransformersDoes) {
  std::ifstream file(test::source_directory() / "tests/data/chat_goldens.json");
  const json document = json::parse(file);
  int rendered = 0, refused = 0;
  for (const json& golden : document["cases"]) {
    const std::string name = golden["template"];
    const ChatTemplate chat(document["templates"][name].get<std::string>(), document["bos_token"],
                            document["eos_token"]);
    std::vector<ChatMessage> messages;
    for (const json& message : golden["messages"]) messages.push_back({message["role"], message["content"]});
    SCOPED_TRACE(name + " " + golden["messages"].dump());
    if (golden.contains("error")) {
      ++refused;
      try {
        chat.render(messages, golden["add_generation_prompt"]);
        ADD_FAILURE() << "not refused";
      } catch (const ChatTemplateError& error) {
        EXPECT_NE(std::string(error.what()).find(golden["error"]), std::string::npos) << error.what();
      }
      continue;
    }
    ++rendered;
    EXPECT_EQ(chat.render(messages, golden["add_generation_prompt"]), golden["text"].get<std::string>());
  }
  EXPECT_GE(rendered, 100);
  EXPECT_GE(refused, 4);
}

TEST(ChatTemplate, NamesWhatItDoesNotSupport) {
  const std::vector<std::pair<std::string, std::string>> cases = {
      {"{% macro f(x) %}{{ x }}{% endmacro %}", "'macro'"},
      {"{% include 'a' %}", "'include'"},
      {"{% raw %}x{% endraw %}", "'raw'"},
      {"a\nb\n{% call f() %}", "line 3: 'call'"},
      {"{{ messages|shuffle }}", "filter 'shuffle'"},
      {"{{ 1 is prime }}", "test 'prime'"},
      {"{{ 'a'.encode('utf-8') }}", "method 'encode' of a string"},
      {"{{ lipsum(3) }}", "function 'lipsum'"},
      {"{{ cycler }}{{ cycler() }}", "function 'cycler'"},
      {"{{ messages }}", "a list as text"},
      {"{{ 2 ** 3 }}", "'**'"},
      {"{{ 'a' * 3 }}", "a string '*' an integer"},
      {"{{ 'a%s' % 1 }}", "a string '%' an integer"},
      {"{% set x | upper %}a{% endset %}", "'set' with a filter"},
      {"{% for a in messages recursive %}{% endfor %}", "'recursive'"},
      {"{{ messages|tojson(sort_keys=true) }}", "argument 'sort_keys' of 'tojson'"},
      {"{{ messages|tojson(ensure_ascii=true) }}", "ensure_ascii"},
      {"{{ messages|tojson(2) }}", "ensure_ascii"},  // the first one by position
      {"{{ messages|tojson(indent='  ') }}", "indent of tojson"},
      {"{{ messages|tojson(false, 2, none) }}", "filter 'tojson' with 3 arguments"},
      {"{{ 'a'|upper(1) }}", "filter 'upper' with 1 argument is"},
      {"{{ 'a'.upper(1) }}", "method 'upper' of a string with 1 argument is"},
      {"{{ '1f'|int(0, 16) }}", "filter 'int' with 2 arguments"},
      {"{{ messages|join(', ', 'role') }}", "filter 'join' with 2 arguments"},
      {"{{ messages|first(1) }}", "filter 'first' with 1 argument"},
      {"{{ messages|map }}", "filter 'map' with 0 arguments"},
      {"{{ ['a']|map('trim', 'a', 'b')|list }}", "filter 'trim' with 2 arguments"},
      {"{{ 1 is odd(2) }}", "test 'odd' with 1 argument"},
      {"{{ 1 is eq }}", "test 'eq' with 0 arguments"},
      {"{{ [1]|select('odd', 2)|list }}", "test 'odd' with 1 argument"},
      {"{{ messages[0].items(1) }}", "method 'items' of a dictionary with 1 argument"},
      {"{{ messages[0].get('role', default=1) }}", "argument 'default' of 'get'"},
      {"{{ 'a'.find('a', 0, 1, 2) }}", "method 'find' of a string with 4 arguments"},
      {"{{ 'a'.find('a', 0.5) }}", "find needs an integer"},
      {"{{ 'a'.replace('a', 'b', count=1, x=2) }}", "argument 'count' of 'replace'"},
      {"{{ range(1, 2, 3, 4) }}", "function 'range' with 4 arguments"},
      {"{{ strftime_now('%Y', 1) }}", "function 'strftime_now' with 2 arguments"},
      {"{{ 'a'|replace(old='a', 'b') }}", "without a name"},
      {"{{ 'a'|trim('a', chars='b') }}", "argument 'chars' of 'trim' is given twice"},
      {"{{ 'ä'|upper }}", "case of letters"},
      {"{{ f(*messages) }}", "'*' in an argument list"},
  };
  for (const auto& [source, named] : cases)
    EXPECT_NE(refusal(source).find(named), std::string::npos) << source << ": " << refusal(source);
}

/// Source and what transformers renders.
using Renderings = std::vector<std::pair<std::string, std::string>>;

TEST(ChatTemplate, StripsAndSplitsAsPythonDoes) {
  const std::string space = "\u3000\u00a0\u0085\x1c\u1680\u2000\u200a\u2028\u2029\u202f\u205f\t\n";
  const std::vector<ChatMessage> messages = {{"user", space + "é" + space + "b" + space}};
  const std::string inside = "é" + space + "b";
  for (const auto& [expression, expected] : Renderings{
           {"trim", inside}, {"trim(none)", inside}, {"trim('\u3000')", space.substr(3) + inside + space}}) {
    EXPECT_EQ(render("{{ messages[0].content|" + expression + " }}", messages), expected) << expression;
  }
  for (const auto& [call, expected] : Renderings{{"strip()", inside},
                                                 {"lstrip()", inside + space},
                                                 {"rstrip()", space + inside},
                                                 {"split()|join('|')", "é|b"},
                                                 {"split(none, 1)|join('|')", "é|b" + space},
                                                 {"split(none, 0)|join('|')", inside + space}}) {
    EXPECT_EQ(render("{{ messages[0].content." + call + " }}", messages), expected) << call;
  }
  EXPECT_EQ(render("{{ '\u200bx\u180e'.strip() }}"), "\u200bx\u180e");  // no white space
  EXPECT_EQ(render("{{ 'éèé'.strip('é') }}"), "è");                     // shares its first byte
  EXPECT_EQ(render("{{ '\u3000 7\x1f'|int }}"), "7");
}

TEST(ChatTemplate, TitlesAsTheFilterDoesAndAsTheMethodDoes) {
  const std::string text = "it's a WORLD foo-bar (baz) [qux] <a> {b} x_y 3rd\x1f  end";
  const std::vector<ChatMessage> messages = {{"user", text}};
  EXPECT_EQ(render("{{ messages[0].content|title }}", messages),
            "It's A World Foo-Bar (Baz) [Qux] <A> {B} X_y 3rd\x1f  End");
  EXPECT_EQ(render("{{ messages[0].content.title() }}", messages),
            "It'S A World Foo-Bar (Baz) [Qux] <A> {B} X_Y 3Rd\x1f  End");
}

TEST(ChatTemplate, TakesAllArguments) {
  for (const auto& [expression, expected] : Renderings{
           {"'a-b-c'.replace('-', '+', 1)", "a+b-c"},
           {"'a-b-c'.replace('-', '+', 0)", "a-b-c"},
           {"'a-b-c'|replace('-', '+', -1)", "a+b+c"},
           {"'a-b-c'|replace('-', '+', count=1)", "a+b-c"},
           {"'a-b'.replace('-', '+', -9223372036854775807)", "a+b"},
           {"'éaéa'.find('a', 2)", "3"},
           {"'éaéa'.find('a', -1)", "3"},
           {"'abc'.find('c', 0, 2)", "-1"},
           {"'abc'.find('c', none, none)", "2"},
           {"'abc'.find('', 3)", "3"},
           {"'abc'.find('', 4)", "-1"},
           {"'éb'.startswith('b', 1)", "True"},
           {"'abc'.startswith('a', 1)", "False"},
           {"'abc'.startswith('', 4)", "False"},
           {"'abc'.startswith(('x', 'b'), 1)", "True"},
           {"'abc'.endswith('b', 0, -1)", "True"},
           {"'abc'.endswith('bc', 2)", "False"},
           {"'a,b,c'.split(',', 1)|join('|')", "a|b,c"},
           {"'a,b,c'.split(sep=',', maxsplit=1)|join('|')", "a|b,c"},
           {"'a,b'.split(',', 0)|join('|')", "a,b"},
           {"'a  '.split(none, 1)|join('|')", "a"},
           {"'x'|int(7)", "7"},
           {"'x'|int(default='d')", "d"},
           {"none|int(7)", "7"},
           {"'42abc'|int", "0"},
           {"'42.9'|int", "42"},
           {"' +5 '|int", "5"},
           {"'1_000'|int", "1000"},
           {"'1e3'|int", "1000"},
           {"'inf'|int(3)", "3"},
           {"-2.9|int", "-2"},
           {"''|default('x', boolean=true)", "x"},
           {"nothing|default == ''", "True"},
           {"[1]|tojson(ensure_ascii=false, indent=1)", "[\n 1\n]"},
           {"[1]|tojson(indent=1, ensure_ascii=false)", "[\n 1\n]"},
           {"[1]|tojson(indent=-1)", "[\n1\n]"},
           {"['a', 'b']|join(d='-')", "a-b"},
           {"'xax'|trim(chars='x')", "a"},
       }) {
    EXPECT_EQ(render("{{ " + expression + " }}"), expected) << expression;
  }
}

TEST(ChatTemplate, RefusesBrokenTemplates) {
  for (const char* source : {"{{",
                             "{{ 'a",
                             "{% if %}",
                             "{% if x %}",
                             "{% endif %}",
                             "{% else %}",
                             "{% for x %}{% endfor %}",
                             "{# a",
                             "{{ a b }}",
                             "{{ (1, }}",
                             "{{ [1, 2 }}",
                             "{{ {'a' 1} }}",
                             "{% set = 1 %}",
                             "{{ 99999999999999999999 }}",
                             "{{ 'a' if }}",
                             "{{ x. }}",
                             "{{ $ }}",
                             "{% break %}",
                             "{{ and }}",
                             "{{ '\\ud800' }}",
                             "{% set a, b = 1 %}",
                             "{% set q.x = 1 %}",
                             "{{ messages[0]['a'] '\n' }}{{ x '\n' }}",
                             "{{ nothing.at_all }}",
                             "{{ nothing + 'a' }}",
                             "{{ 1 / 0 }}",
                             "{{ 1 % 0 }}",
                             "{{ 'a' < 1 }}",
                             "{{ none() }}",
                             "{{ 9223372036854775807 + 1 }}",
                             "{{ [1, 2][::0] }}",
                             "{{ range(1000000000) }}",
                             "{{ range(0, 5, 0) }}",
                             "{{ 5 in 5 }}",
                             "{{ 'a'.replace('', 'b') }}",
                             "{{ 'a'.split('') }}",
                             "{{ {1: 2} }}",
                             "{{ nothing|int }}",
                             "{{ '99999999999999999999'|int }}",
                             "{{ '1e30'|int }}",
                             "{{ none|length }}"}) {
    refusal(source);
  }
}

TEST(ChatTemplate, BoundsWorkAndText) {
  const std::string nested = std::string(5000, '(') + "1" + std::string(5000, ')');
  EXPECT_NE(refusal("{{ " + nested + " }}").find("deeper"), std::string::npos);
  std::string blocks;
  for (int i = 0; i < 5000; ++i) blocks += "{% if 1 %}";
  EXPECT_NE(refusal(blocks).find("deeper"), std::string::npos);
  std::string chain = "1";
  for (int i = 0; i < 5000; ++i) chain += " or 1";
  EXPECT_NE(refusal("{{ " + chain + " }}").find("operators"), std::string::npos);
  const std::string loops =
      "{% for a in range(1000) %}{% for b in range(1000) %}{% for c in range(1000) %}{% endfor %}{% endfor "
      "%}{% endfor %}";
  EXPECT_NE(refusal(loops).find("steps"), std::string::npos);
  EXPECT_NE(refusal("{% set ns = namespace(x='aaaaaaaaaaaaaaaa') %}{% for a in range(60) %}{% set ns.x = "
                    "ns.x + ns.x %}{% endfor %}")
                .find("32 MiB"),
            std::string::npos);
  EXPECT_NE(refusal("{% for a in range(1000) %}{{ messages[0].content }}{% endfor %}",
                    {{"user", std::string(1 << 20, 'x')}})
                .find("bytes of text"),
            std::string::npos);
  EXPECT_NE(refusal(std::string(300 << 10, 'x')).find("307200 bytes"), std::string::npos);
}

TEST(ChatTemplate, GivesTheTemplateTheName) {
  EXPECT_EQ(render("{% for m in messages %}{{ m.name is defined }}{{ m.name }};{% endfor %}",
                   {{"user", "a", "Ann"}, {"user", "b"}}),
            "TrueAnn;False;");
  EXPECT_EQ(render("{{ strftime_now('%Y')|length }}"), "4");
}

class ChatTemplateFiles : public testing::Test {
 protected:
  std::string loaded() const {
    const auto chat = ChatTemplate::load(directory_.path());
    return chat ? chat->render({{"user", "Hi"}}, false) : "none";
  }
  test::TemporaryDirectory directory_;
};

TEST_F(ChatTemplateFiles, AreFoundWhereHuggingFacePutsThem) {
  EXPECT_EQ(loaded(), "none");
  directory_.write("tokenizer_config.json", R"({"bos_token": "<s>", "eos_token": {"content": "</s>"}})");
  EXPECT_EQ(loaded(), "none");
  directory_.write(
      "tokenizer_config.json",
      R"({"bos_token": "<s>", "eos_token": {"content": "</s>"}, "chat_template": "{{ bos_token }}1{{ eos_token }}"})");
  EXPECT_EQ(loaded(), "<s>1</s>");
  directory_.write(
      "tokenizer_config.json",
      R"({"chat_template": [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]})");
  EXPECT_EQ(loaded(), "d");
  directory_.write("chat_template.jinja", "{{ messages[0].content }}\n");
  EXPECT_EQ(loaded(), "Hi");
  EXPECT_EQ(ChatTemplate::with_source(directory_.path(), "x{{ bos_token }}").render({}, false), "x");
}

TEST_F(ChatTemplateFiles, ThatAreWrongAreRefusedByName) {
  for (const char* text : {R"({"chat_template": 5})", R"({"chat_template": [{"name": "default"}]})"}) {
    directory_.write("tokenizer_config.json", text);
    try {
      ChatTemplate::load(directory_.path());
      ADD_FAILURE() << text;
    } catch (const std::runtime_error& error) {
      EXPECT_NE(std::string(error.what()).find("tokenizer_config.json"), std::string::npos);
    }
  }
}

// The template is not needed to load a model: who asks for a chat hears why there is none.
TEST_F(ChatTemplateFiles, ListsWithoutADefaultAreRefusedWhenRendered) {
  for (const char* text :
       {R"({"chat_template": []})", R"({"chat_template": [{"name": "tool_use", "template": "t"}]})"}) {
    directory_.write("tokenizer_config.json", text);
    const auto chat = ChatTemplate::load(directory_.path());
    ASSERT_TRUE(chat);
    try {
      chat->render({{"user", "Hi"}}, true);
      ADD_FAILURE() << text;
    } catch (const ChatTemplateError& error) {
      EXPECT_NE(std::string(error.what()).find("no template named default"), std::string::npos);
    }
  }
}

/// What a template sees of the special tokens, with the tokenizer that the same files make.
std::string special_tokens(std::initializer_list<std::pair<std::string, std::string>> name_and_content,
                           const TokenizerHints& hints = {}) {
  std::vector<TokenizerFile> list = {
      {"chat_template.jinja", "dir/chat_template.jinja", "{{ bos_token }} {{ eos_token }}"}};
  for (const auto& [name, content] : name_and_content) list.push_back({name, "dir/" + name, content});
  const FileSet files("dir", std::move(list));
  auto chat = ChatTemplate::from_files(files);
  chat->take_missing_tokens(Tokenizer::from_files(files, hints));
  return chat->render({}, false);
}

TEST(ChatTemplate, TakesSpecialTokensThatNoFileNamesFromTheTokenizer) {
  const std::pair<std::string, std::string> model = {"tokenizer.model",
                                                     sample::model_proto(sample::llama_pieces())};
  EXPECT_EQ(special_tokens({model}), "<s> </s>");
  EXPECT_EQ(special_tokens({model, {"tokenizer_config.json", R"({"eos_token": "<x>"})"}}), "<s> <x>");
  EXPECT_EQ(special_tokens({model, {"special_tokens_map.json", R"({"bos_token": "<x>"})"}}), "<x> </s>");
  // Named as none: so it is.
  EXPECT_EQ(special_tokens({model, {"tokenizer_config.json", R"({"bos_token": null, "eos_token": ""})"}}),
            " ");
  EXPECT_EQ(special_tokens({model,
                            {"tokenizer_config.json", R"({"bos_token": null})"},
                            {"special_tokens_map.json", R"({"bos_token": "<x>"})"}}),
            "<x> </s>");

  TokenizerHints hints;
  hints.eos_ids = {1, 2};
  EXPECT_EQ(special_tokens({model}, hints), "<s> <s>");
  hints.bos_id = 1 << 30;  // a config.json of another model
  hints.eos_ids = {-1};
  EXPECT_EQ(
      special_tokens({{"vocab.json", sample::vocab_json()}, {"merges.txt", sample::merges_txt()}}, hints),
      " ");
}

}  // namespace
}  // namespace spinfer
