#include "engine/apps/calibration_text.h"

#include <algorithm>

#include "engine/apps/options.h"
#include "kernels/check.h"

namespace spinfer {
namespace {

constexpr int kLength = 2048;  // of the papers

/// The beginning of a text, cut between two lines: whole files of web text need not be tokenized for some
/// samples.
std::string beginning(std::string text, size_t bytes) {
  if (text.size() <= bytes) return text;
  const size_t line = text.rfind('\n', bytes);
  text.resize(line == std::string::npos || line == 0 ? bytes : line);
  return text;
}

}  // namespace

void CalibrationFlags::add_to(CLI::App& command) {
  command.option_defaults()->group("Calibration options");
  command.add_option("--calibration", file, "text to calibrate with; - = stdin")->check(not_empty());
  command.add_option("--calibration-tokens", tokens_file, "token ids instead of text")->check(not_empty());
  command.add_option("--calibration-samples", samples, "samples cut from it")
      ->check(whole_number_in(1, 1 << 16))
      ->capture_default_str();
  command.add_option("--calibration-length", length, "tokens of a sample")
      ->check(whole_number_in(1, 1 << 24))
      ->default_str("2048, or what the model takes if less");
  command.option_defaults()->group("Options");
}

CalibrationSamples cut_samples(const std::vector<int32_t>& text, std::optional<int32_t> bos, int count,
                               int length) {
  const int64_t size = int64_t(text.size());
  const int64_t own = std::min<int64_t>(std::max(1, length - (bos ? 1 : 0)), size);  // tokens of the text
  if (own == 0) return {};
  const int64_t windows = std::clamp<int64_t>(size / own, 1, count);
  CalibrationSamples samples;
  for (int64_t i = 0; i < windows; ++i) {
    const int64_t begin = windows > 1 ? i * (size - own) / (windows - 1) : 0;
    std::vector<int32_t> sample;
    sample.reserve(size_t(own) + 1);
    if (bos && length > 1) sample.push_back(*bos);
    sample.insert(sample.end(), text.begin() + begin, text.begin() + begin + own);
    samples.push_back(std::move(sample));
  }
  return samples;
}

CalibrationSamples read_samples(const CalibrationFlags& flags, const std::string& model,
                                const ModelConfig& config) {
  constexpr size_t kBytesPerToken = 16;  // several times what tokenizers need for text
  if (flags.length > config.max_positions) {
    throw UsageError(fmt::format("--calibration-length {}: this model takes 1..{} tokens", flags.length,
                                 config.max_positions));
  }
  const int length = flags.length > 0 ? flags.length : int(std::min<int64_t>(kLength, config.max_positions));
  std::vector<int32_t> ids;
  if (!flags.tokens_file.empty()) {
    ids = parse_ids(read_text(flags.tokens_file), flags.tokens_file, IdSource::file);
  } else {
    const size_t wanted = size_t(flags.samples) * size_t(length) * kBytesPerToken;
    ids = load_tokenizer(model).encode(beginning(read_text(flags.file), wanted), false);
  }
  const auto bos = config.bos_id >= 0 ? std::optional(config.bos_id) : std::nullopt;
  auto samples = cut_samples(ids, bos, flags.samples, length);
  check(!samples.empty(), "{}: no tokens to calibrate with",
        flags.file.empty() ? flags.tokens_file : flags.file);
  return samples;
}

}  // namespace spinfer
