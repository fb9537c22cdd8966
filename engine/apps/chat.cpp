// `spinfer chat`: turns with a model in the terminal, in its own chat format.
#include <fmt/format.h>
#include <poll.h>
#include <unistd.h>

#include <algorithm>
#include <memory>
#include <nlohmann/json.hpp>

#include "engine/apps/command.h"
#include "engine/apps/interrupt.h"
#include "engine/apps/options.h"
#include "engine/apps/output.h"
#include "engine/apps/progress.h"
#include "engine/apps/sampling_flags.h"
#include "kernels/check.h"
#include "models/json_text.h"
#include "tokenizer/chat_template.h"

namespace spinfer {
namespace {

constexpr size_t kMaxTurnBytes = 16 << 20;
constexpr const char* kHelp =
    "A line is a turn; end it with \\ to go on in the next, or put many lines between two lines of \"\"\".\n"
    "/clear forgets the conversation, /exit or Ctrl-D leaves, Ctrl-C stops an answer.\n";

struct ChatFlags {
  CommonFlags common;
  CapacityFlags capacity;
  SamplingFlags sampling;
  std::string system;
  std::string chat_template;
};

void say(const std::string& text) {
  std::fputs(text.c_str(), stderr);
  std::fflush(stderr);
}

/// Lines of stdin, which Ctrl-C does not end.
class TurnReader {
 public:
  TurnReader() : terminal_(isatty(STDIN_FILENO) && isatty(STDERR_FILENO)) {}
  bool terminal() const { return terminal_; }

  /// The next turn; none at the end of stdin, or after two Ctrl-C in a row.
  std::optional<std::string> turn() {
    std::string text, line;
    bool block = false, more = false;
    for (;;) {
      if (terminal_) say(block || more ? "… " : "> ");
      if (!read_line(line)) return text.empty() ? std::nullopt : std::optional(text);
      if (line == "\"\"\"") {
        block = !block;
        if (!block) return text;
        continue;
      }
      more = !block && line.ends_with('\\');
      if (more) line.pop_back();
      text += line;
      check(text.size() <= kMaxTurnBytes, "a turn has more than {} bytes", kMaxTurnBytes);
      if (!block && !more) return text;
      text += '\n';
    }
  }

 private:
  bool read_line(std::string& line) {
    for (;;) {
      const size_t end = pending_.find('\n');
      if (end != std::string::npos) {
        line = pending_.substr(0, end);
        pending_.erase(0, end + 1);
        interrupts_ = 0;
        return true;
      }
      if (take_sigint()) {
        if (++interrupts_ == 2) return false;
        say("\n(Ctrl-C again or Ctrl-D leaves)\n> ");
      }
      stop_if_interrupted();
      pollfd input{.fd = STDIN_FILENO, .events = POLLIN, .revents = 0};
      if (poll(&input, 1, 50) <= 0) continue;
      char buffer[4096];
      const ssize_t count = read(STDIN_FILENO, buffer, sizeof(buffer));
      if (count > 0) {
        pending_.append(buffer, size_t(count));
        check(pending_.size() <= kMaxTurnBytes, "stdin: a line has more than {} bytes", kMaxTurnBytes);
        continue;
      }
      line = std::exchange(pending_, {});
      return !line.empty();
    }
  }

  bool terminal_;
  std::string pending_;
  int interrupts_ = 0;
};

class Conversation {
 public:
  Conversation(const ChatFlags& flags, Engine& engine, ChatTemplate chat)
      : flags_(flags), engine_(engine), chat_(std::move(chat)) {
    clear();
  }

  void clear() {
    messages_.clear();
    if (!flags_.system.empty()) messages_.push_back({"system", flags_.system});
  }

  /// One turn and its answer. A turn that cannot be answered is taken back.
  void answer(const std::string& turn) {
    messages_.push_back({"user", turn});
    try {
      std::vector<int32_t> prompt = engine_.tokenizer()->encode(chat_.render(messages_, true), false, true);
      const int64_t room = engine_.max_model_len() - int64_t(prompt.size());
      check(room >= 1, "the conversation has {} tokens, the model takes {} (/clear begins a new one)",
            prompt.size(), engine_.max_model_len());
      SamplingParams params = flags_.sampling.params(flags_.common.seed);
      params.max_tokens = int(std::min<int64_t>(params.max_tokens, room));
      const int64_t prompt_tokens = int64_t(prompt.size());
      generate(std::move(prompt), params, prompt_tokens);
    } catch (const std::runtime_error&) {
      messages_.pop_back();
      throw;
    }
  }

 private:
  void generate(std::vector<int32_t> prompt, const SamplingParams& params, int64_t prompt_tokens) {
    std::string text;
    std::vector<TokenLogprob> logprobs;
    int64_t tokens = 0;
    FinishReason finish = FinishReason::none;
    const RequestId id = engine_.add_request(std::move(prompt), params);
    take_sigint();
    while (engine_.has_work()) {
      stop_if_interrupted();
      if (take_sigint()) engine_.cancel(id);
      for (const RequestUpdate& update : engine_.step()) {
        check(update.finish != FinishReason::error, "{}", update.error);
        text += update.new_text;
        tokens += update.sampled_tokens;
        logprobs.insert(logprobs.end(), update.logprobs.begin(), update.logprobs.end());
        finish = update.finish;
        if (!flags_.common.json && !update.new_text.empty()) print_out(update.new_text);
      }
    }
    messages_.push_back({"assistant", text});
    if (!flags_.common.json) return print_out("\n");
    nlohmann::json answer{{"role", "assistant"},
                          {"content", text},
                          {"finish_reason", to_string(finish)},
                          {"usage", {{"prompt_tokens", prompt_tokens}, {"completion_tokens", tokens}}}};
    if (params.logprobs >= 0) answer["logprobs"] = logprobs_json(logprobs);
    print_json(answer);
  }

  const ChatFlags& flags_;
  Engine& engine_;
  ChatTemplate chat_;
  std::vector<ChatMessage> messages_;
};

ChatTemplate load_template(const ChatFlags& flags) {
  if (!flags.chat_template.empty())
    return ChatTemplate::with_source(flags.common.model,
                                     read_text_file(flags.chat_template, kMaxTemplateBytes));
  auto chat = ChatTemplate::load(flags.common.model);
  check(
      chat.has_value(),
      "{}: has no chat template (chat_template in tokenizer_config.json); give one with --chat-template FILE",
      flags.common.model);
  return *chat;
}

void run_chat(const ChatFlags& flags) {
  flags.sampling.check_logprobs(flags.common.json);
  ChatTemplate chat = load_template(flags);
  EngineOptions options = flags.common.engine_options();
  flags.capacity.apply(options);
  options.max_num_seqs = 1;
  std::unique_ptr<Engine> engine;
  {
    ProgressBar bar("loading", ProgressUnit::bytes);
    options.load_progress = bar.callback();
    engine = Engine::create(options);
  }
  check(engine->tokenizer(), "{}: no tokenizer files ({})", flags.common.model, kTokenizerFiles);
  chat.take_missing_tokens(*engine->tokenizer());
  TurnReader reader;
  Conversation conversation(flags, *engine, std::move(chat));
  if (reader.terminal()) {
    keep_running_on_sigint();
    say(kHelp);
  }
  while (const std::optional<std::string> turn = reader.turn()) {
    if (turn->find_first_not_of(" \t\r\n") == std::string::npos) continue;
    const std::string_view command = std::string_view(*turn).substr(0, turn->find_last_not_of(" \t\r\n") + 1);
    if (command == "/exit") return;
    if (command == "/help") {
      say(kHelp);
    } else if (command == "/clear") {
      conversation.clear();
    } else if (reader.terminal()) {
      try {
        conversation.answer(*turn);
      } catch (const Interrupted&) {
        throw;
      } catch (const OutputClosed&) {
        throw;
      } catch (const std::runtime_error& error) {
        check(engine->failure().empty(), "{}", engine->failure());
        say(fmt::format("spinfer: {}\n", error.what()));
      }
    } else {
      conversation.answer(*turn);
    }
  }
  if (reader.terminal()) say("\n");
}

}  // namespace

void add_chat(CLI::App& app) {
  auto flags = std::make_shared<ChatFlags>();
  flags->sampling.max_tokens = 512;
  CLI::App* command = app.add_subcommand("chat", "turns with the model, in its chat format");
  flags->common.add_to(*command, CommonFlags::Model::required);
  flags->capacity.add_to(*command);
  flags->sampling.add_to(*command);
  command->add_option("--system", flags->system, "system message");
  command
      ->add_option("--chat-template", flags->chat_template,
                   "Jinja file to use instead of the model's chat template")
      ->check(not_empty());
  command->callback([flags] { run_chat(*flags); });
}

}  // namespace spinfer
