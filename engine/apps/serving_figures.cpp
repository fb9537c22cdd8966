#include "engine/apps/serving_figures.h"

#include <fmt/format.h>

#include <cmath>
#include <nlohmann/json.hpp>
#include <numeric>

#include "engine/apps/generation_run.h"

namespace spinfer {
namespace {

constexpr const char* kSeries[][2] = {{"ttft_ms", "time to first token"},
                                      {"tpot_ms", "time per output token"},
                                      {"itl_ms", "between pieces"},
                                      {"e2el_ms", "whole request"}};

void add_series(nlohmann::json& figures, const std::string& name, const std::vector<double>& seconds) {
  figures["mean_" + name] = mean(std::accumulate(seconds.begin(), seconds.end(), 0.0), seconds.size()) * 1e3;
  figures["median_" + name] = quantile(seconds, 0.5) * 1e3;
  figures["p99_" + name] = quantile(seconds, 0.99) * 1e3;
}

}  // namespace

double mean(double sum, size_t count) {
  return count > 0 ? sum / double(count) : kNone;
}

std::string decimal(const nlohmann::json& figure, int decimals) {
  const auto value = figure.get<double>();
  return std::isnan(value) ? "-" : fmt::format("{:.{}f}", value, decimals);
}

nlohmann::json serving_json(const ServingRun& run) {
  std::vector<double> ttft, tpot, itl, e2el;
  int64_t input = 0, output = 0;
  for (const RequestFigures& request : run.requests) {
    ttft.push_back(request.first_token);
    e2el.push_back(request.end);
    if (request.output_tokens > 1)
      tpot.push_back((request.end - request.first_token) / double(request.output_tokens - 1));
    itl.insert(itl.end(), request.gaps.begin(), request.gaps.end());
    input += request.input_tokens;
    output += request.output_tokens;
  }
  const auto rate = [&](double count) { return run.seconds > 0 ? count / run.seconds : 0; };
  nlohmann::json figures{{"completed", run.requests.size()},
                         {"failed", run.failed},
                         {"duration_s", run.seconds},
                         {"total_input_tokens", input},
                         {"total_output_tokens", output},
                         {"request_throughput", rate(double(run.requests.size()))},
                         {"output_throughput", rate(double(output))},
                         {"total_token_throughput", rate(double(input + output))}};
  add_series(figures, kSeries[0][0], ttft);
  add_series(figures, kSeries[1][0], tpot);
  add_series(figures, kSeries[2][0], itl);
  add_series(figures, kSeries[3][0], e2el);
  return figures;
}

nlohmann::json samples_json(const ServingRun& run) {
  const auto rounded = [](double seconds) { return std::round(seconds * 1e6) / 1e3; };
  nlohmann::json samples;
  for (const char* name : {"ttft_ms", "e2el_ms", "input_tokens", "output_tokens"})
    samples[name] = nlohmann::json::array();
  for (const RequestFigures& request : run.requests) {
    samples["ttft_ms"].push_back(rounded(request.first_token));
    samples["e2el_ms"].push_back(rounded(request.end));
    samples["input_tokens"].push_back(request.input_tokens);
    samples["output_tokens"].push_back(request.output_tokens);
  }
  return samples;
}

std::string serving_table(const nlohmann::json& figures) {
  const auto value = [&](const std::string& name) { return figures.at(name).get<double>(); };
  const auto ms = [&](const char* of, const char* name) {
    return decimal(figures.at(fmt::format("{}_{}", of, name)), 2);
  };
  std::string text = fmt::format(
      "{} requests answered, {} failed, in {:.1f} s: {:.2f} requests/s, {:.1f} output tokens/s, {:.1f} "
      "tokens/s\n",
      figures.at("completed").get<int64_t>(), figures.at("failed").get<int64_t>(), value("duration_s"),
      value("request_throughput"), value("output_throughput"), value("total_token_throughput"));
  text += fmt::format("{:<24}{:>12}{:>12}{:>12}\n", "ms", "mean", "median", "P99");
  for (const auto& [name, label] : kSeries) {
    text += fmt::format("{:<24}{:>12}{:>12}{:>12}\n", label, ms("mean", name), ms("median", name),
                        ms("p99", name));
  }
  return text;
}

std::string cut_line(int64_t requests) {
  return requests > 0 ? fmt::format("requests longer than the model takes, cut to it: {}\n", requests) : "";
}

}  // namespace spinfer
