// Bodies of requests: what is accepted and how it is read; what is refused, and that the refusal names the
// field.
#include "engine/server/openai_request.h"

#include <gtest/gtest.h>

namespace spinfer {
namespace {

TEST(CompletionRequest, ReadsEveryField) {
  const GenerationRequest request = parse_completion_request(R"({
    "model": "m", "prompt": "Once", "max_tokens": 7, "temperature": 0.5, "top_p": 0.9, "top_k": 5, "min_p": 0.1,
    "repetition_penalty": 1.1, "n": 3, "stream": true, "stream_options": {"include_usage": true}, "seed": -4,
    "stop": ["a", "b"], "logprobs": 2, "ignore_eos": true, "user": "u", "best_of": 3, "echo": false, "logit_bias": {},
    "suffix": null, "presence_penalty": 0.0})");
  EXPECT_FALSE(request.chat);
  EXPECT_EQ(request.model, "m");
  ASSERT_EQ(request.prompts.size(), 1u);
  EXPECT_EQ(std::get<std::string>(request.prompts[0]), "Once");
  EXPECT_EQ(request.max_tokens, 7);
  EXPECT_FLOAT_EQ(request.params.temperature, 0.5f);
  EXPECT_FLOAT_EQ(request.params.top_p, 0.9f);
  EXPECT_EQ(request.params.top_k, 5);
  EXPECT_FLOAT_EQ(request.params.min_p, 0.1f);
  EXPECT_FLOAT_EQ(request.params.repeat_penalty, 1.1f);
  EXPECT_EQ(request.n, 3);
  EXPECT_TRUE(request.stream && request.include_usage && request.params.ignore_eos);
  EXPECT_EQ(request.params.seed, uint64_t(-4));
  EXPECT_EQ(request.params.stop, (std::vector<std::string>{"a", "b"}));
  EXPECT_EQ(request.params.logprobs, 2);
}

TEST(CompletionRequest, HasOpenAisDefaults) {
  const GenerationRequest request = parse_completion_request(R"({"prompt": [1, 2]})");
  EXPECT_EQ(std::get<std::vector<int32_t>>(request.prompts[0]), (std::vector<int32_t>{1, 2}));
  EXPECT_EQ(request.max_tokens, std::nullopt);
  EXPECT_EQ(request.params.temperature, 1);
  EXPECT_EQ(request.params.top_p, 1);
  EXPECT_EQ(request.params.top_k, 0);
  EXPECT_EQ(request.params.logprobs, -1);
  EXPECT_FALSE(request.stream || request.include_usage);
  EXPECT_EQ(request.n, 1);
}

TEST(CompletionRequest, TakesManyPrompts) {
  EXPECT_EQ(parse_completion_request(R"({"prompt": ["a", "b", ""]})").prompts.size(), 3u);
  EXPECT_EQ(parse_completion_request(R"({"prompt": [[1], [2, 3]]})").prompts.size(), 2u);
}

TEST(ChatRequest, ReadsMessagesAndItsOwnFields) {
  const GenerationRequest request = parse_chat_request(R"({
    "messages": [{"role": "system", "content": "s", "name": "n"},
                 {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
                 {"role": "assistant", "content": "c", "refusal": null, "tool_calls": []}],
    "max_tokens": 3, "max_completion_tokens": 5, "logprobs": true, "top_logprobs": 4, "tools": [], "tool_choice": "auto",
    "response_format": {"type": "text"}})");
  EXPECT_TRUE(request.chat);
  ASSERT_EQ(request.messages.size(), 3u);
  EXPECT_EQ(request.messages[0].name, "n");
  EXPECT_EQ(request.messages[1].content, "ab");
  EXPECT_EQ(request.max_tokens, 5);
  EXPECT_EQ(request.params.logprobs, 4);
  EXPECT_EQ(parse_chat_request(R"({"messages": [{"role": "user", "content": "x"}], "logprobs": true})")
                .params.logprobs,
            0);
}

TEST(TokenizeRequests, AreRead) {
  EXPECT_EQ(parse_tokenize_request(R"({"prompt": "a b", "add_special_tokens": false})").text, "a b");
  EXPECT_EQ(parse_detokenize_request(R"({"tokens": [1, 2]})").tokens, (std::vector<int32_t>{1, 2}));
}

struct Refused {
  const char* body;
  const char* param;  ///< the error's; "" where none is at fault
};

void expect_refused(GenerationRequest (&parse)(std::string_view), const Refused& refused) {
  try {
    parse(refused.body);
    ADD_FAILURE() << "accepted: " << refused.body;
  } catch (const RequestError& error) {
    EXPECT_EQ(error.status, 400) << refused.body;
    EXPECT_EQ(error.param, refused.param) << refused.body << ": " << error.what();
    EXPECT_EQ(std::string(error.what()).find('\n'), std::string::npos) << refused.body;
  }
}

const Refused kBadCompletions[] = {
    {"", ""},
    {"{", ""},
    {"null", ""},
    {"[]", ""},
    {"\"text\"", ""},
    {"{\"prompt\": \"a\"} x", ""},
    {"{\"prompt\": \"a\", \"prompt\": \"b\"}", ""},
    {"{'prompt': 'a'}", ""},
    {"{\"prompt\": \"\xff\"}", ""},
    {"{\"prompt\": \"\\ud800\"}", ""},
    {"{\"prompt\": \"a\", \"temperature\": NaN}", ""},
    {"{\"prompt\": \"a\", \"temperature\": 1e999}", ""},
    {"{}", "prompt"},
    {R"({"prompt": null})", "prompt"},
    {R"({"prompt": 5})", "prompt"},
    {R"({"prompt": {}})", "prompt"},
    {R"({"prompt": []})", "prompt"},
    {R"({"prompt": [true]})", "prompt"},
    {R"({"prompt": ["a", 1]})", "prompt"},
    {R"({"prompt": [1, "a"]})", "prompt"},
    {R"({"prompt": [-1]})", "prompt"},
    {R"({"prompt": [1.5]})", "prompt"},
    {R"({"prompt": [3000000000]})", "prompt"},
    {R"({"prompt": [[1], ["a"]]})", "prompt"},
    {R"({"prompt": [[1], [[2]]]})", "prompt"},
    {R"({"prompt": "a", "model": 5})", "model"},
    {R"({"prompt": "a", "max_tokens": 0})", "max_tokens"},
    {R"({"prompt": "a", "max_tokens": -5})", "max_tokens"},
    {R"({"prompt": "a", "max_tokens": 1.5})", "max_tokens"},
    {R"({"prompt": "a", "max_tokens": "5"})", "max_tokens"},
    {R"({"prompt": "a", "max_tokens": 99999999999999999999})", "max_tokens"},
    {R"({"prompt": "a", "max_tokens": true})", "max_tokens"},
    {R"({"prompt": "a", "temperature": -0.1})", "temperature"},
    {R"({"prompt": "a", "temperature": 101})", "temperature"},
    {R"({"prompt": "a", "temperature": "hot"})", "temperature"},
    {R"({"prompt": "a", "top_p": 0})", "top_p"},
    {R"({"prompt": "a", "top_p": 1.01})", "top_p"},
    {R"({"prompt": "a", "top_k": -2})", "top_k"},
    {R"({"prompt": "a", "top_k": 1.5})", "top_k"},
    {R"({"prompt": "a", "min_p": 2})", "min_p"},
    {R"({"prompt": "a", "repetition_penalty": 0})", "repeat_penalty"},
    {R"({"prompt": "a", "repetition_penalty": -1})", "repetition_penalty"},
    {R"({"prompt": "a", "n": 0})", "n"},
    {R"({"prompt": "a", "n": 129})", "n"},
    {R"({"prompt": "a", "n": 1e3})", "n"},
    {R"({"prompt": ["a", "b"], "n": 100})", "n"},
    {R"({"prompt": "a", "stream": 1})", "stream"},
    {R"({"prompt": "a", "stream": "true"})", "stream"},
    {R"({"prompt": "a", "stream_options": {}})", "stream_options"},
    {R"({"prompt": "a", "stream": true, "stream_options": 5})", "stream_options"},
    {R"({"prompt": "a", "stream": true, "stream_options": {"include_usage": 1}})", "include_usage"},
    {R"({"prompt": "a", "seed": 1.5})", "seed"},
    {R"({"prompt": "a", "seed": "x"})", "seed"},
    {R"({"prompt": "a", "stop": 5})", "stop"},
    {R"({"prompt": "a", "stop": [5]})", "stop"},
    {R"({"prompt": "a", "stop": ""})", "stop"},
    {R"({"prompt": "a", "stop": ["a", ""]})", "stop"},
    {R"({"prompt": "a", "stop": ["1","2","3","4","5","6","7","8","9","10","11","12","13","14","15","16","17"]})",
     "stop"},
    {R"({"prompt": "a", "logprobs": -1})", "logprobs"},
    {R"({"prompt": "a", "logprobs": 21})", "logprobs"},
    {R"({"prompt": "a", "logprobs": true})", "logprobs"},
    {R"({"prompt": "a", "logit_bias": {"5": 1}})", "logit_bias"},
    {R"({"prompt": "a", "best_of": 5})", "best_of"},
    {R"({"prompt": "a", "echo": true})", "echo"},
    {R"({"prompt": "a", "suffix": "b"})", "suffix"},
    {R"({"prompt": "a", "presence_penalty": 0.5})", "presence_penalty"},
    {R"({"prompt": "a", "frequency_penalty": -1})", "frequency_penalty"},
    {R"({"prompt": "a", "use_beam_search": true})", "use_beam_search"},
    {R"({"prompt": "a", "messages": []})", "messages"},
    {R"({"prompt": "a", "max_new_tokens": 5})", "max_new_tokens"},
    {R"({"prompt": "a", "": 5})", ""},
};

const Refused kBadChats[] = {
    {"{}", "messages"},
    {R"({"messages": null})", "messages"},
    {R"({"messages": "hello"})", "messages"},
    {R"({"messages": []})", "messages"},
    {R"({"messages": {}})", "messages"},
    {R"({"messages": ["hello"]})", "messages"},
    {R"({"messages": [{}]})", "role"},
    {R"({"messages": [{"role": "user"}]})", "content"},
    {R"({"messages": [{"role": "user", "content": null}]})", "content"},
    {R"({"messages": [{"role": "user", "content": 5}]})", "content"},
    {R"({"messages": [{"role": "king", "content": "a"}]})", "role"},
    {R"({"messages": [{"role": 5, "content": "a"}]})", "role"},
    {R"({"messages": [{"role": "user", "content": ["a"]}]})", "content"},
    {R"({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]})",
     "type"},
    {R"({"messages": [{"role": "user", "content": [{"type": "text"}]}]})", "text"},
    {R"({"messages": [{"role": "user", "content": "a", "name": 5}]})", "name"},
    {R"({"messages": [{"role": "assistant", "content": "a", "tool_calls": [{"id": "x"}]}]})", "tool_calls"},
    {R"({"messages": [{"role": "user", "content": "a"}], "prompt": "b"})", "prompt"},
    {R"({"messages": [{"role": "user", "content": "a"}], "max_completion_tokens": 0})",
     "max_completion_tokens"},
    {R"({"messages": [{"role": "user", "content": "a"}], "logprobs": 5})", "logprobs"},
    {R"({"messages": [{"role": "user", "content": "a"}], "top_logprobs": 5})", "top_logprobs"},
    {R"({"messages": [{"role": "user", "content": "a"}], "logprobs": true, "top_logprobs": 21})",
     "top_logprobs"},
    {R"({"messages": [{"role": "user", "content": "a"}], "tools": [{"type": "function"}]})", "tools"},
    {R"({"messages": [{"role": "user", "content": "a"}], "response_format": {"type": "json_object"}})",
     "response_format"},
    {R"({"messages": [{"role": "user", "content": "a"}], "modalities": ["audio"]})", "modalities"},
};

TEST(CompletionRequest, RefusesWhatIsWrong) {
  for (const Refused& refused : kBadCompletions) expect_refused(parse_completion_request, refused);
}

TEST(ChatRequest, RefusesWhatIsWrong) {
  for (const Refused& refused : kBadChats) expect_refused(parse_chat_request, refused);
}

TEST(Requests, AreBounded) {
  const std::string deep = "{\"prompt\": " + std::string(100'000, '[') + std::string(100'000, ']') + "}";
  expect_refused(parse_completion_request, {deep.c_str(), ""});
  std::string many = "{\"prompt\": [1";
  for (int i = 0; i < 1'100'000; ++i) many += ",1";
  expect_refused(parse_completion_request, {(many + "]}").c_str(), ""});
  std::string messages = "{\"messages\": [{\"role\": \"user\", \"content\": \"a\"}";
  for (int i = 0; i < 5000; ++i) messages += ",{\"role\": \"user\", \"content\": \"a\"}";
  expect_refused(parse_chat_request, {(messages + "]}").c_str(), "messages"});
  const std::string name = "{\"prompt\": \"a\", \"model\": \"" + std::string(300, 'm') + "\"}";
  expect_refused(parse_completion_request, {name.c_str(), "model"});
}

}  // namespace
}  // namespace spinfer
