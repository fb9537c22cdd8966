// From a request to its answer, without sockets: who is told what when requests run, stop, are refused,
// fail, are left by their clients or cut off; and that the engine then has nothing left of them.
#include "engine/server/generation.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "engine/stop_strings.h"
#include "tests/engine/faulty_backend.h"
#include "tests/server/serving_fixture.h"
#include "tokenizer/utf8.h"

namespace spinfer {
namespace {

using Pace = Serving::Pace;

/// A completion that runs to its length, and is the same each time.
Body completion(std::vector<int32_t> prompt, int max_tokens, int seed) {
  return {{"prompt", std::move(prompt)}, {"max_tokens", max_tokens}, {"seed", seed}, {"ignore_eos", true}};
}

Body with(Body body, const Body& more) {
  body.update(more);
  return body;
}

void expect_answer(const FakeClient& client, const std::vector<Answer>& expected, bool logprobs = false) {
  EXPECT_TRUE(client.ended());
  EXPECT_EQ(client.status, 200);
  EXPECT_EQ(client.error, "");
  ASSERT_EQ(client.choices.size(), expected.size());
  for (const auto& [index, choice] : client.choices) {
    const Answer& answer = expected.at(size_t(index));
    EXPECT_EQ(choice.text, answer.text);
    EXPECT_EQ(choice.finish, to_string(answer.finish));
    EXPECT_EQ(choice.tokens.size(), logprobs ? answer.ids.size() : 0);
  }
}

/// What a request leaves behind: nothing.
void expect_idle(Serving& serving) {
  EXPECT_EQ(serving.live().choices(), 0u);
  const EngineStats stats = serving.stats();
  EXPECT_EQ(stats.running, 0);
  EXPECT_EQ(stats.waiting, 0);
  EXPECT_EQ(stats.kv_blocks_used, 0);
}

TEST(Generation, AWholeAnswerAndAStreamAreWhatTheEngineMade) {
  const TinyTextModel model;
  Serving serving(model.options());
  const Body body =
      with(completion({5, 6, 7, 30}, 40, 3), {{"n", 3}, {"logprobs", 2}, {"ignore_eos", false}});
  const auto expected = Reference(model.options()).answers(body);
  const auto whole = serving.ask(body);
  const auto stream =
      serving.ask(with(body, {{"stream", true}, {"stream_options", {{"include_usage", true}}}}));
  const auto silent = serving.ask(with(body, {{"stream", true}}));  // about its usage
  ASSERT_TRUE(serving.run_to_end({whole, stream, silent}));
  int64_t tokens = 0;
  for (const Answer& answer : expected)
    tokens += int64_t(answer.ids.size()) + (answer.finish == FinishReason::stop);  // the end of text, too
  for (const ClientPtr& client : {whole, stream}) {
    expect_answer(*client, expected, true);
    EXPECT_EQ(client->usage["prompt_tokens"], 4);  // of three choices, counted once
    EXPECT_EQ(client->usage["completion_tokens"], tokens);
  }
  expect_answer(*silent, expected, true);
  EXPECT_TRUE(silent->usage.is_null());
  EXPECT_EQ(whole->events, 0);
  ASSERT_EQ(whole->headers.size(), 1u);
  EXPECT_EQ(whole->headers[0].first, "X-Request-Id");
  EXPECT_TRUE(whole->headers[0].second.starts_with("cmpl-"));
  expect_idle(serving);
}

TEST(Generation, AChatsStreamOpensEachChoiceOnce) {
  const TinyTextModel model;
  Serving serving(model.options());
  const Body body = {{"messages", {{{"role", "user"}, {"content", "abc"}}}},
                     {"max_tokens", 30},
                     {"seed", 4},
                     {"n", 2},
                     {"ignore_eos", true}};
  const auto expected = Reference(model.options()).answers(body);
  const auto whole = serving.ask(body);
  const auto stream = serving.ask(with(body, {{"stream", true}}));
  ASSERT_TRUE(serving.run_to_end({whole, stream}));
  for (const ClientPtr& client : {whole, stream}) {
    expect_answer(*client, expected);
    for (const auto& [index, choice] : client->choices) EXPECT_EQ(choice.openings, 1);
  }
}

TEST(Generation, CachedTokensOfAPromptAreCountedOnce) {
  const TinyTextModel model;
  auto options = model.options();
  options.max_num_seqs = 1;  // the second choice finds what the first has left
  Serving serving(options);
  std::mt19937 random(4);
  const auto known = random_prompt(random, 40), fresh = random_prompt(random, 40);
  const auto first = serving.ask(with(completion(known, 5, 1), {{"n", 2}}));
  ASSERT_TRUE(serving.run_to_end({first}));
  Body both = with(completion({}, 5, 2), {{"n", 2}});
  both["prompt"] = std::vector{known, fresh};
  const auto second = serving.ask(both);
  ASSERT_TRUE(serving.run_to_end({second}));
  const auto cached = [](FakeClient& client) {
    return client.usage["prompt_tokens_details"]["cached_tokens"].get<int>();
  };
  EXPECT_EQ(first->usage["prompt_tokens"], 40);
  EXPECT_EQ(cached(*first), 0);
  EXPECT_EQ(second->usage["prompt_tokens"], 80);
  EXPECT_EQ(cached(*second), 32);  // whole blocks
}

/// An answer too long for the I/O thread is made elsewhere, and is the same.
TEST(Generation, LongAnswersAreMadeLater) {
  const TinyTextModel model;
  Serving serving(model.options());
  const Body body = with(completion({5, 6}, 120, 8), {{"logprobs", 20}});
  const auto stays = serving.ask(body), leaves = serving.ask(body);
  ASSERT_TRUE(serving.run_until([&] { return serving.made_later == 2; }));
  leaves->leave();
  ASSERT_TRUE(serving.run_to_end({stays, leaves}));
  expect_answer(*stays, Reference(model.options()).answers(body), true);
  EXPECT_EQ(leaves->status, 0);
  expect_idle(serving);
}

/// Stop strings cut from the text itself, across the borders of its tokens.
class StopsAcrossTokens : public testing::TestWithParam<int> {
 protected:
  /// The text that can be said once the first `count` tokens are known.
  std::string released(const std::vector<int32_t>& prompt, const Answer& answer, const std::string& stop,
                       size_t count) const {
    IncrementalDecoder decoder(reference_.tokenizer(), prompt);
    StopStrings stops({kNever, stop});
    std::string text;
    for (size_t i = 0; i < count; ++i) text += stops.push(decoder.push(answer.ids[i]));
    return text;
  }
  /// Of some tokens of the answer, from a byte within the first to one within the last.
  std::string draw_stop(const std::vector<int32_t>& prompt, const Answer& answer,
                        std::mt19937& random) const {
    IncrementalDecoder decoder(reference_.tokenizer(), prompt);
    std::vector<std::string> pieces;
    for (const int32_t id : answer.ids) pieces.push_back(decoder.push(id));
    std::string stop;
    while (stop.empty() || !is_valid_utf8(stop)) {
      const size_t first = random() % (pieces.size() - 4), count = 2 + random() % 3;
      stop.clear();
      for (size_t i = first; i < first + count; ++i) stop += pieces[i];
      if (stop.empty()) continue;
      stop.erase(0, random() % std::max<size_t>(1, pieces[first].size()));
      stop.resize(stop.size() - random() % std::max<size_t>(1, pieces[first + count - 1].size()));
    }
    return stop;
  }

  static constexpr const char* kNever = "abcabcabcabcabcabc";
  const TinyTextModel model_;
  Reference reference_{model_.options()};
};

TEST_P(StopsAcrossTokens, LogprobsComeWithTheTextTheyBelongTo) {
  std::mt19937 random{uint32_t(GetParam())};
  const std::vector<int32_t> prompt = random_prompt(random, 6);
  const Body body = with(completion(prompt, 40, GetParam()), {{"logprobs", 0}});
  const Answer free = reference_.answers(body).at(0);
  Serving serving(model_.options());
  struct Case {
    Body body;
    Answer answer;
    ClientPtr whole, stream;
  };
  std::deque<Case> cases;  // clients watch them
  std::vector<ClientPtr> clients;
  int held = 0;
  for (int i = 0; i < 8; ++i) {
    const std::string stop = draw_stop(prompt, free, random);
    Case& it = cases.emplace_back();
    it.body = with(body, {{"stop", {kNever, stop}}});
    it.answer = reference_.answers(it.body).at(0);
    const size_t at = free.text.find(stop);
    ASSERT_NE(at, std::string::npos);
    EXPECT_EQ(it.answer.text, free.text.substr(0, at)) << stop;
    it.whole = serving.ask(it.body);
    it.stream =
        serving.ask(with(it.body, {{"stream", true}}), [this, &it, &prompt, &held, stop](auto& client) {
          const FakeClient::Choice& choice = client.choices[0];
          if (!choice.finish.empty()) return;
          // As many tokens were listed as it takes to say this much, no fewer and no more.
          EXPECT_EQ(choice.text, released(prompt, it.answer, stop, choice.tokens.size()));
          EXPECT_NE(choice.text, released(prompt, it.answer, stop, choice.tokens.size() - 1));
          held += int(choice.tokens.size()) > client.events;
        });
    clients.insert(clients.end(), {it.whole, it.stream});
  }
  ASSERT_TRUE(serving.run_to_end(clients));
  for (const Case& it : cases) {
    std::vector<int64_t> offsets;
    int64_t offset = 0;
    for (const int32_t id : it.answer.ids) {
      offsets.push_back(offset);
      offset += count_chars(reference_.tokenizer().piece_bytes(id));
    }
    for (const ClientPtr& client : {it.whole, it.stream}) {
      expect_answer(*client, {it.answer}, true);
      EXPECT_EQ(client->choices[0].finish, "stop");
      EXPECT_EQ(client->choices[0].text_offsets, offsets);
    }
    EXPECT_EQ(it.whole->choices[0].tokens, it.stream->choices[0].tokens);
  }
  EXPECT_GT(held, 0) << "no text was ever held back";
  expect_idle(serving);
}

INSTANTIATE_TEST_SUITE_P(Seeds, StopsAcrossTokens, testing::Range(1, 7));

/// Streamed and not, whoever of the two is at the test's centre.
class Streamed : public testing::TestWithParam<bool> {
 protected:
  Body as_asked(const Body& body) const { return with(body, {{"stream", GetParam()}}); }
  const TinyTextModel model_;
};

TEST_P(Streamed, OneRefusedChoiceRefusesItsGroup) {
  Serving serving(model_.options(), Pace::lockstep);
  const Body others = completion({9, 8, 7}, 50, 5);
  const auto other = serving.ask(with(others, {{"stream", true}}));
  ASSERT_TRUE(serving.run_until([&] { return other->events >= 3; }));
  Body body = as_asked(completion({}, 50, 6));
  body["prompt"] = {{5, 6}, {7, 8}, {9, 999}};
  body["n"] = 2;
  const auto refused = serving.ask(body);
  ASSERT_TRUE(serving.run_until([&] { return refused->ended(); }));
  EXPECT_FALSE(other->ended());
  EXPECT_EQ(serving.live().choices(), 1u);
  EXPECT_EQ(refused->status, 400);
  EXPECT_EQ(refused->events, 0);
  EXPECT_EQ(refused->error, "token id 999: must be 0 to 119");
  EXPECT_EQ(refused->error_type, "invalid_request_error");
  ASSERT_TRUE(serving.run_to_end({other}));
  expect_answer(*other, Reference(model_.options()).answers(others));
  EXPECT_EQ(serving.ended(FinishReason::error), 6);
  EXPECT_EQ(serving.ended(FinishReason::cancelled), 0);
  EXPECT_EQ(serving.stats().generated_tokens, 50) << "choices of the refused group ran";
  expect_idle(serving);
}

/// The first of three choices fails in the fifth step: the second, which runs, and the third, which waits
/// where only two may run, are for nothing then, and the request behind them gets its answer.
TEST_P(Streamed, OneFailedChoiceEndsItsGroup) {
  const Backend backend = faulty_backend(cpu_backend().attention, logits_with_nan);
  const Body body = as_asked(with(completion({5, 6}, 50, 6), {{"n", 3}}));
  const Body others = completion({9, 8, 7}, 40, 5);
  Reference reference(model_.options());
  const auto expected = reference.answers(body), expected_of_others = reference.answers(others);
  for (const bool all_run : {true, false}) {
    SCOPED_TRACE(all_run);
    auto options = model_.options();
    options.backend = &backend;
    options.max_num_seqs = all_run ? 16 : 2;
    Serving serving(options, Pace::lockstep);
    calls_until_fault = 4;
    const auto failed = serving.ask(body);
    const auto other = serving.ask(others);
    ASSERT_TRUE(serving.run_to_end({failed, other}));
    EXPECT_EQ(failed->status, GetParam() ? 200 : 503);
    EXPECT_NE(failed->error.find("NaN"), std::string::npos) << failed->error;
    EXPECT_EQ(failed->error_type, "server_error");
    EXPECT_FALSE(failed->done);
    for (const auto& [index, choice] : failed->choices) {
      EXPECT_TRUE(expected.at(size_t(index)).text.starts_with(choice.text));
      EXPECT_EQ(choice.finish, "");
    }
    expect_answer(*other, expected_of_others);
    EXPECT_EQ(serving.ended(FinishReason::error), 1);
    EXPECT_EQ(serving.ended(FinishReason::cancelled), 2);
    EXPECT_EQ(serving.stats().generated_tokens, 40 + 4 + 5 + (all_run ? 5 : 1));
    expect_idle(serving);
  }
}

/// Of one client two choices run and two wait, the other one's waits behind them. The one that streams is
/// given up by then, while it is sent something.
TEST_P(Streamed, WhatClientsLeaveBehindMakesRoomForOthers) {
  auto options = model_.options();
  options.max_num_seqs = 3;
  options.prefix_caching = false;  // each choice has its own blocks
  Serving serving(options, Pace::lockstep);
  std::mt19937 random(2);
  const Body first = completion({9, 8, 7}, 40, 5), second = completion({10, 8, 7}, 40, 6);
  const Body large = completion(random_prompt(random, 100), 150, 6);
  ClientPtr leaves, leaves_too;
  int64_t most_used = 0;
  const auto runs = serving.ask(with(first, {{"stream", true}}), [&](const FakeClient& client) {
    most_used = std::max(most_used, serving.stats().kv_blocks_used);
    if (client.events != 6) return;
    leaves->leave();
    leaves_too->leave();
  });
  leaves = serving.ask(as_asked(with(large, {{"n", 4}})), [](FakeClient& client) {
    if (client.events == 8) client.leave();
  });
  leaves_too = serving.ask(as_asked(large));
  const auto waits = serving.ask(second);
  ASSERT_TRUE(serving.run_until([&] { return serving.ended(FinishReason::cancelled) == 5; }));
  EXPECT_GE(most_used, 2 * 7);
  EXPECT_LE(serving.stats().kv_blocks_used, 2 * 3);
  EXPECT_FALSE(runs->ended());
  EXPECT_EQ(serving.live().choices(), 2u);
  ASSERT_TRUE(serving.run_to_end({runs, waits}));
  Reference reference(model_.options());
  expect_answer(*runs, reference.answers(first));
  expect_answer(*waits, reference.answers(second));
  EXPECT_LE(leaves->events, 8);
  EXPECT_EQ(leaves->error + leaves_too->error, "");
  EXPECT_LE(serving.stats().generated_tokens, 2 * 40 + 2 * 10);
  expect_idle(serving);
}

TEST_P(Streamed, ACutOffTellsAllWhoWait) {
  auto options = model_.options();
  options.max_num_seqs = 2;
  Serving serving(options, Pace::lockstep);
  std::vector<ClientPtr> clients;
  for (int i = 0; i < 5; ++i) clients.push_back(serving.ask(as_asked(completion({5, 6, 7 + i}, 200, i))));
  ASSERT_TRUE(serving.run_until([&] { return serving.stats().generated_tokens >= 6; }));
  EXPECT_EQ(serving.stats().running, 2);
  EXPECT_EQ(serving.stats().waiting, 3);
  serving.live().end_all(503, "the server is shutting down");
  EXPECT_EQ(serving.live().choices(), 0u);
  int begun = 0;
  for (const ClientPtr& client : clients) {
    EXPECT_TRUE(client->ended());
    EXPECT_EQ(client->error, "the server is shutting down");
    EXPECT_EQ(client->error_type, "server_error");
    EXPECT_FALSE(client->done);
    begun += client->status == 200;
    EXPECT_EQ(client->status, client->events > 0 ? 200 : 503);
  }
  EXPECT_EQ(begun, GetParam() ? 2 : 0);
  serving.stop();
}

TEST_P(Streamed, AFailedEngineTellsAllWhoWait) {
  auto options = model_.options();
  options.max_num_seqs = 2;
  options.fault.step = 5;
  Serving serving(options, Pace::lockstep);  // all come in before the fifth step
  std::vector<ClientPtr> clients;
  for (int i = 0; i < 5; ++i) clients.push_back(serving.ask(as_asked(completion({5, 6, 7 + i}, 200, i))));
  ASSERT_TRUE(serving.run_to_end(clients));
  for (const ClientPtr& client : clients) EXPECT_EQ(client->error, "injected fault in step 5");
  EXPECT_EQ(serving.ended(FinishReason::error), 5);
  const auto late = serving.ask(as_asked(completion({5}, 2, 1)));
  ASSERT_TRUE(serving.run_to_end({late}));
  EXPECT_EQ(late->status, 503);
  EXPECT_EQ(late->error, "the engine has stopped: injected fault in step 5");
  expect_idle(serving);
}

INSTANTIATE_TEST_SUITE_P(Or, Streamed, testing::Bool(),
                         [](const auto& info) { return info.param ? "stream" : "whole"; });

/// A client that leaves before its request is in the engine, while it ends, after it has ended but before
/// that is known here, or not at all.
TEST(Generation, ClientsMayLeaveAsTheirAnswerIsMade) {
  constexpr int kRounds = 240;
  const TinyTextModel model;
  Serving serving(model.options());
  int answered = 0, unheard = 0;
  for (int round = 0; round < kRounds; ++round) {
    SCOPED_TRACE(round);
    const int tokens = 1 + round % 3;
    const auto client = serving.ask(with(completion({5, 6, 7}, tokens, round), {{"stream", round % 8 < 4}}));
    if (round % 4 == 0) {
      client->leave();
    } else if (round % 4 == 1) {
      spin_for(std::chrono::microseconds(round));
      client->leave();
    } else if (round % 4 == 2) {
      ASSERT_TRUE(serving.wait_for_reports(size_t(tokens)));
      client->leave();
      ++unheard;
    }
    ASSERT_TRUE(serving.run_to_end({client}));
    answered += client->ended();
    EXPECT_EQ(client->ended(), round % 4 == 3);
    EXPECT_EQ(client->status, client->ended() ? 200 : 0);
    expect_idle(serving);
  }
  EXPECT_EQ(answered, kRounds / 4);
  EXPECT_EQ(serving.ended(FinishReason::length) + serving.ended(FinishReason::cancelled), kRounds);
  EXPECT_GE(serving.ended(FinishReason::length), answered + unheard);
}

}  // namespace
}  // namespace spinfer
