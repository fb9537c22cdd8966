// `spinfer serve`: the HTTP server.
#include <fmt/format.h>

#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>

#include "engine/apps/command.h"
#include "engine/apps/interrupt.h"
#include "engine/apps/options.h"
#include "engine/apps/output.h"
#include "engine/apps/progress.h"
#include "engine/server/api_server.h"
#include "kernels/check.h"
#include "models/json_text.h"
#include "tokenizer/chat_template.h"

namespace spinfer {
namespace {

struct ServeFlags {
  CommonFlags common;
  CapacityFlags capacity;
  ConfigFlags config;
  std::string host = "127.0.0.1";
  int port = 8080;
  std::string api_key_file;
  std::vector<std::string> names;
  std::string chat_template;
  int max_waiting = 1024;
  int max_connections = 2048;
  double request_timeout = 60;
  double drain_timeout = 30;
};

#ifdef SPINFER_TEST_FAULTS
/// For tests of the server's last hours.
InjectedFault injected_fault() {
  const auto number = [](const char* name, int64_t otherwise) {
    const char* text = std::getenv(name);
    return text ? std::atoll(text) : otherwise;
  };
  return {.step = number("SPINFER_FAULT_STEP", 0),
          .rank = int(number("SPINFER_FAULT_RANK", -1)),
          .hang = number("SPINFER_FAULT_HANG", 0) != 0};
}
#endif

std::string default_name(const std::string& model) {
  std::filesystem::path path = std::filesystem::path(model).lexically_normal();
  if (!path.has_filename()) path = path.parent_path();
  const std::string name = path.filename().string();
  return name.empty() || name == "." || name == ".."
             ? std::filesystem::absolute(path).lexically_normal().filename().string()
             : name;
}

ServeOptions serve_options(const ServeFlags& flags) {
  ServeOptions options;
  options.engine = flags.common.engine_options();
  flags.capacity.apply(options.engine);
  flags.config.apply(options.engine);
#ifdef SPINFER_TEST_FAULTS
  options.engine.fault = injected_fault();
#endif
  options.http.host = flags.host;
  options.http.port = flags.port;
  options.http.max_connections = flags.max_connections;
  options.http.request_seconds = flags.request_timeout;
  if (!flags.api_key_file.empty()) options.keys = ApiKeys::load(flags.api_key_file);
  options.model_names = flags.names;
  if (flags.names.empty()) options.model_names = {default_name(options.engine.directory().string())};
  if (!flags.chat_template.empty())
    options.chat_template = read_text_file(flags.chat_template, kMaxTemplateBytes);
  options.max_waiting = flags.max_waiting;
  options.drain_seconds = flags.drain_timeout;
  return options;
}

StopRequest poll_stop() {
  if (!interrupted()) return StopRequest::none;
  return interrupt_status() == 128 + SIGTERM ? StopRequest::drain : StopRequest::at_once;
}

/// What the program says while it serves: lines on stderr, or JSON lines on stdout.
void say(const ServeFlags& flags, const char* event, const std::string& url, const std::string& model) {
  if (flags.common.json) return print_json({{"event", event}, {"url", url}, {"model", model}});
  std::fputs(fmt::format("spinfer: {} on {}, model {}\n", event, url, model).c_str(), stderr);
}

void run_serve(const ServeFlags& flags) {
  flags.config.check_source(flags.common.model);
  ServeOptions options = serve_options(flags);
  const std::string name = options.model_names.front();
  // The watchdog of signals must not cut a drain short, and leaves the answers to SIGINT time to go out: what
  // is left to do after either is quick, but for a step or a rank that hangs.
  constexpr int kAnswerGrace = 3, kDrainGrace = 10;
  set_interrupt_grace(kAnswerGrace);
  set_drain_grace(int(flags.drain_timeout) + kDrainGrace);
  ProgressBar bar("loading", ProgressUnit::bytes);
  options.engine.load_progress = bar.callback();
  ApiServer server(std::move(options));
  const bool literal = flags.host.find(':') != std::string::npos;  // an IPv6 address
  const std::string url =
      fmt::format("http://{}{}{}:{}", literal ? "[" : "", flags.host, literal ? "]" : "", server.port());
  say(flags, "listening", url, name);
  try {
    server.run(poll_stop, [&] { say(flags, "ready", url, name); });
  } catch (const Interrupted&) {  // while loading
  }
  if (poll_stop() == StopRequest::at_once) throw Interrupted();
}

}  // namespace

void add_serve(CLI::App& app) {
  auto flags = std::make_shared<ServeFlags>();
  CLI::App* command = app.add_subcommand("serve", "HTTP server with OpenAI's API");
  flags->common.add_to(*command, CommonFlags::Model::optional);
  flags->capacity.add_to(*command);
  flags->config.add_to(
      *command,
      "config.json of a model to fill with random weights, instead of -m: for load tests; the "
      "tokenizer's files lie beside it");
  command->add_option("--host", flags->host, "address to listen on; 0.0.0.0 = all")
      ->check(not_empty())
      ->capture_default_str();
  command->add_option("--port", flags->port, "port to listen on; 0 = any free one")
      ->check(whole_number_in(0, 65535))
      ->capture_default_str();
  command
      ->add_option("--api-key-file", flags->api_key_file,
                   "file of keys, one a line; without it everybody may")
      ->check(not_empty());
  command
      ->add_option("--served-model-name", flags->names,
                   "what clients call the model (the directory's name); several are aliases")
      ->allow_extra_args(false)
      ->check(not_empty());
  command
      ->add_option("--chat-template", flags->chat_template,
                   "Jinja file to use instead of the model's chat template")
      ->check(not_empty());
  command
      ->add_option("--max-waiting", flags->max_waiting,
                   "answers that may wait beyond the running ones; then 429")
      ->check(whole_number_in(0, 1 << 20))
      ->capture_default_str();
  command->add_option("--max-connections", flags->max_connections, "open connections; then 503")
      ->check(whole_number_in(1, 1 << 16))
      ->capture_default_str();
  command
      ->add_option("--request-timeout", flags->request_timeout,
                   "seconds a request may take to arrive, and a reader to take nothing")
      ->check(number_in(0.1, 3600, "0.1..3600"))
      ->capture_default_str();
  command
      ->add_option("--drain-timeout", flags->drain_timeout,
                   "seconds that running requests have after SIGTERM")
      ->check(number_in(0, 3600, "0..3600"))
      ->capture_default_str();
  command->callback([flags] { run_serve(*flags); });
}

}  // namespace spinfer
