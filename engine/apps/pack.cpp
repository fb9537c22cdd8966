// `spinfer pack`: pruned checkpoint in, packed checkpoint out; or back.
#include <memory>

#include "engine/apps/command.h"
#include "engine/apps/interrupt.h"
#include "engine/apps/progress.h"
#include "engine/apps/written_checkpoint.h"
#include "kernels/thread_pool.h"
#include "models/checkpoint_tools.h"

namespace spinfer {
namespace {

struct PackFlags {
  OutputFlags output;
  bool dense_output = false;
};

void run_pack(const PackFlags& flags) {
  flags.output.common.check_one_rank("pack");
  set_interrupt_grace(kOutputInterruptGrace);
  ThreadPool pool(flags.output.common.threads);
  const std::string &in = flags.output.common.model, &out = flags.output.out;
  if (flags.dense_output) {
    ProgressBar bar("unpacking", ProgressUnit::bytes);
    unpack_checkpoint(in, out, pool, bar.callback());
  } else {
    ProgressBar bar("packing", ProgressUnit::bytes);
    pack_checkpoint(in, out, flags.output.min_sparsity, pool, bar.callback());
  }
  report_written(flags.output, flags.dense_output ? Written::dense : Written::packed, pool,
                 nlohmann::json::object());
}

}  // namespace

void add_pack(CLI::App& app) {
  auto flags = std::make_shared<PackFlags>();
  CLI::App* command =
      app.add_subcommand("pack", "pruned Hugging Face directory → packed directory (TCA-BME)");
  flags->output.add_to(*command, {.threads = true});
  command->add_flag("--dense-output", flags->dense_output,
                    "the way back: write dense safetensors (zeros included) others can read");
  command->callback([flags] { run_pack(*flags); });
}

}  // namespace spinfer
