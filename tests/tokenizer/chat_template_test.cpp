// Chat templates against what transformers renders (scripts/make_chat_goldens.py), and what is refused.
#include "tokenizer/chat_template.h"
#include "tests/test_paths.h"

#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>

#include "tests/temporary_directory.h"
#include "tokenizer/file_set.h"

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
      {"{{ 'ä'|upper }}", "case of letters"},
      {"{{ f(*messages) }}", "'*' in an argument list"},
  };
  for (const auto& [source, named] : cases)
    EXPECT_NE(refusal(source).find(named), std::string::npos) << source << ": " << refusal(source);
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
  for (const char* text : {R"({"chat_template": 5})", R"({"chat_template": []})",
                           R"({"chat_template": [{"name": "default"}]})"}) {
    directory_.write("tokenizer_config.json", text);
    try {
      ChatTemplate::load(directory_.path());
      ADD_FAILURE() << text;
    } catch (const std::runtime_error& error) {
      EXPECT_NE(std::string(error.what()).find("tokenizer_config.json"), std::string::npos);
    }
  }
}

}  // namespace
}  // namespace spinfer
