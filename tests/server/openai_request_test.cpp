// Bodies of requests: what is accepted and how it is read; what is refused, and that the refusal names the
// field.
#include "engine/server/openai_request.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <ctime>
#include <limits>

namespace spinfer {
namespace {

TEST(CompletionRequest, ReadsEveryField) {
  const GenerationRequest request = parse_completion_request(R"({
    "model": "m", "prompt": "Once", "max_tokens": 7, "temperature": 0.5, "top_p": 0.9, "top_k": 5, "min_p": 0.1,
    "repetition_penalty": 1.1, "n": 3, "stream": true, "stream_options": {"include_usage": true}, "seed": -4,
    "stop": ["a", "b"], "logprobs": 2, "ignore_eos": true, "user": "u", "best_of": 3, "echo": false,
    "logit_bias": {"50": -100, "7": 1.5},
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
  ASSERT_EQ(request.params.logit_bias.size(), 2u);
  EXPECT_EQ(request.params.logit_bias[0].id, 7);
  EXPECT_FLOAT_EQ(request.params.logit_bias[0].bias, 1.5f);
  EXPECT_EQ(request.params.logit_bias[1].id, 50);
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

/// `param` is the error's; "" where no field is at fault.
template <class Parse>
void expect_refused(Parse parse, const std::string& body, const std::string& param) {
  try {
    parse(body);
    ADD_FAILURE() << "accepted: " << body;
  } catch (const RequestError& error) {
    EXPECT_EQ(error.status, 400) << body;
    EXPECT_EQ(error.param, param) << body << ": " << error.what();
    EXPECT_EQ(std::string(error.what()).find('\n'), std::string::npos) << body;
  }
}

/// What a field of a request that is good otherwise must not be; the error names it.
struct BadField {
  const char* name;
  std::vector<const char*> values;
};

template <class Parse>
void expect_refused(Parse parse, const std::string& good_fields, const std::vector<BadField>& table) {
  for (const BadField& field : table) {
    for (const char* value : field.values) {
      std::string body = "{" + good_fields;
      if (!good_fields.empty()) body += ", ";
      expect_refused(parse, body + '"' + field.name + "\": " + value + "}", field.name);
    }
  }
}

const char kGoodPrompt[] = R"("prompt": "a")";
const char kGoodMessages[] = R"("messages": [{"role": "user", "content": "a"}])";

TEST(Requests, RefuseWhatIsNoObject) {
  for (const char* body :
       {"", "{", "null", "[]", "\"text\"", "{\"prompt\": \"a\"} x", "{\"prompt\": \"a\", \"prompt\": \"b\"}",
        "{'prompt': 'a'}", "{\"prompt\": \"\xff\"}", "{\"prompt\": \"\\ud800\"}",
        "{\"prompt\": \"a\", \"temperature\": NaN}", "{\"prompt\": \"a\", \"temperature\": 1e999}"}) {
    expect_refused(parse_completion_request, body, "");
    expect_refused(parse_chat_request, body, "");
  }
}

TEST(Requests, RefuseBadValuesOfSharedFields) {
  const std::vector<BadField> table = {
      {"model", {"5"}},
      {"max_tokens", {"0", "-5", "1.5", R"("5")", "99999999999999999999", "true"}},
      {"temperature", {"-0.1", "101", R"("hot")"}},
      {"top_p", {"0", "1.01"}},
      {"top_k", {"-2", "1.5"}},
      {"min_p", {"2"}},
      {"repetition_penalty", {"0", "-1", "1e-60", "0.009", "1001"}},
      {"n", {"0", "129", "1e3"}},
      {"stream", {"1", R"("true")"}},
      {"stream_options", {"{}"}},  // without "stream"
      {"seed", {"1.5", R"("x")"}},
      {"stop",
       {"5", "[5]", R"("")", R"(["a", ""])",
        R"(["1","2","3","4","5","6","7","8","9","10","11","12","13","14","15","16","17"])"}},
      {"logit_bias",
       {"[]", "5", R"({"5": "1"})", R"({"5": 101})", R"({"-1": 1})", R"({"x": 1})", R"({"05": 1})",
        R"({"": 1})", R"({"3000000000": 1})"}},
      {"presence_penalty", {"0.5"}},
      {"frequency_penalty", {"-1"}},
      {"use_beam_search", {"true"}},
      {"max_new_tokens", {"5"}},
      {"", {"5"}},
  };
  expect_refused(parse_completion_request, kGoodPrompt, table);
  expect_refused(parse_chat_request, kGoodMessages, table);
  expect_refused(parse_completion_request, std::string(kGoodPrompt) + R"(, "stream": true)",
                 {{"stream_options", {"5"}}});
  expect_refused(parse_completion_request,
                 R"({"prompt": "a", "stream": true, "stream_options": {"include_usage": 1}})",
                 "include_usage");
  expect_refused(parse_completion_request,
                 R"({"prompt": "a", "stream": true, "stream_options": {"continuous": true}})", "continuous");
}

TEST(TokenizeRequests, RefuseFieldsTheyDoNotHave) {
  expect_refused(parse_tokenize_request, R"({"prompt": "a", "messages": []})", "messages");
  expect_refused(parse_detokenize_request, R"({"tokens": [1], "prompt": "a"})", "prompt");
  EXPECT_EQ(parse_tokenize_request(R"({"prompt": "a", "messages": null})").text, "a");
}

TEST(CompletionRequest, RefusesWhatIsWrong) {
  expect_refused(parse_completion_request, "{}", "prompt");
  expect_refused(parse_completion_request, "",
                 {{"prompt",
                   {"null", "5", "{}", "[]", "[true]", R"(["a", 1])", R"([1, "a"])", "[-1]", "[1.5]",
                    "[3000000000]", R"([[1], ["a"]])", "[[1], [[2]]]"}}});
  expect_refused(parse_completion_request, kGoodPrompt,
                 {{"logprobs", {"-1", "21", "true"}},
                  {"best_of", {"5"}},
                  {"echo", {"true"}},
                  {"suffix", {R"("b")"}},
                  {"messages", {"[]"}}});
  expect_refused(parse_completion_request, R"({"prompt": ["a", "b"], "n": 100})", "n");
}

TEST(ChatRequest, RefusesWhatIsWrong) {
  expect_refused(parse_chat_request, "{}", "messages");
  expect_refused(parse_chat_request, "", {{"messages", {"null", R"("hello")", "[]", "{}", R"(["hello"])"}}});
  expect_refused(parse_chat_request, kGoodMessages,
                 {{"prompt", {R"("b")"}},
                  {"max_completion_tokens", {"0"}},
                  {"logprobs", {"5"}},
                  {"top_logprobs", {"5"}},  // without "logprobs"
                  {"tools", {R"([{"type": "function"}])"}},
                  {"response_format", {R"({"type": "json_object"})"}},
                  {"modalities", {R"(["audio"])"}}});
  expect_refused(parse_chat_request, std::string(kGoodMessages) + R"(, "logprobs": true)",
                 {{"top_logprobs", {"21"}}});
}

TEST(ChatRequest, RefusesBadMessages) {
  const std::pair<const char*, const char*> table[] = {
      {"{}", "role"},
      {R"({"role": "user"})", "content"},
      {R"({"role": "user", "content": null})", "content"},
      {R"({"role": "user", "content": 5})", "content"},
      {R"({"role": "king", "content": "a"})", "role"},
      {R"({"role": 5, "content": "a"})", "role"},
      {R"({"role": "user", "content": ["a"]})", "content"},
      {R"({"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]})", "type"},
      {R"({"role": "user", "content": [{"type": "text"}]})", "text"},
      {R"({"role": "user", "content": "a", "name": 5})", "name"},
      {R"({"role": "assistant", "content": "a", "tool_calls": [{"id": "x"}]})", "tool_calls"},
  };
  for (const auto& [message, param] : table)
    expect_refused(parse_chat_request, std::string(R"({"messages": [)") + message + "]}", param);
}

/// Of this thread's own work: whatever else the machine does counts little.
double thread_seconds() {
  timespec time{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
  return double(time.tv_sec) + double(time.tv_nsec) * 1e-9;
}

TEST(Requests, OfManyObjectsTakeTimeInProportion) {
  const auto seconds = [](int objects) {
    std::string body = R"({"metadata": [{})";
    for (int i = 1; i < objects; ++i) body += ",{}";
    body += R"(], "prompt": "a"})";
    double least = std::numeric_limits<double>::infinity();
    for (int run = 0; run < 3; ++run) {
      const double start = thread_seconds();
      EXPECT_EQ(parse_completion_request(body).prompts.size(), 1u);
      least = std::min(least, thread_seconds() - start);
    }
    return least;
  };
  EXPECT_LT(seconds(160'000), 64 * seconds(10'000));  // 16 times in proportion, 256 times if quadratic
}

TEST(Requests, AreBounded) {
  const std::string deep = "{\"prompt\": " + std::string(100'000, '[') + std::string(100'000, ']') + "}";
  expect_refused(parse_completion_request, deep, "");
  std::string many = "{\"prompt\": [1";
  for (int i = 0; i < 1'100'000; ++i) many += ",1";
  expect_refused(parse_completion_request, many + "]}", "");
  std::string messages = "{\"messages\": [{\"role\": \"user\", \"content\": \"a\"}";
  for (int i = 0; i < 5000; ++i) messages += ",{\"role\": \"user\", \"content\": \"a\"}";
  expect_refused(parse_chat_request, messages + "]}", "messages");
  const std::string name = "{\"prompt\": \"a\", \"model\": \"" + std::string(300, 'm') + "\"}";
  expect_refused(parse_completion_request, name, "model");
}

}  // namespace
}  // namespace spinfer
