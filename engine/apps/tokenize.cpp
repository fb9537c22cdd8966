// `spinfer tokenize` / `detokenize`: text ↔ ids over stdin and stdout.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <memory>
#include <nlohmann/json.hpp>

#include "engine/apps/command.h"
#include "engine/apps/options.h"
#include "engine/apps/output.h"
#include "kernels/check.h"

namespace spinfer {

void add_tokenize(CLI::App& app) {
  struct Flags {
    CommonFlags common;
    bool no_bos = false;
  };
  auto flags = std::make_shared<Flags>();
  CLI::App* command = app.add_subcommand("tokenize", "text on stdin → one line of token ids");
  flags->common.add_to(*command, CommonFlags::Model::required, {});
  command->add_flag("--no-bos", flags->no_bos, "do not put the begin-of-text token first");
  command->callback([flags] {
    flags->common.check_one_rank("tokenize");
    const Tokenizer tokenizer = load_tokenizer(flags->common.model);
    const auto ids = tokenizer.encode(read_text("-"), !flags->no_bos);
    if (flags->common.json) return print_json({{"tokens", ids}, {"count", ids.size()}});
    print_out(fmt::format("{}\n", fmt::join(ids, " ")));
  });
}

void add_detokenize(CLI::App& app) {
  auto flags = std::make_shared<CommonFlags>();
  CLI::App* command = app.add_subcommand("detokenize", "token ids on stdin → text");
  flags->add_to(*command, CommonFlags::Model::required, {});
  command->callback([flags] {
    flags->check_one_rank("detokenize");
    const Tokenizer tokenizer = load_tokenizer(flags->model);
    auto ids = parse_ids(read_text("-"), "stdin", IdSource::file);
    if (!ids.empty() && tokenizer.bos_id() == ids[0]) ids.erase(ids.begin());
    const std::string text = tokenizer.decode(ids);
    if (flags->json) return print_json({{"text", text}});
    print_out(text + "\n");
  });
}

}  // namespace spinfer
