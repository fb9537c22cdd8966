// The figures of the serving benchmarks, from the times of their requests. One source for text and JSON.
#pragma once

#include <cstdint>
#include <limits>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

namespace spinfer {

/// A figure that is none. Written, it is null.
constexpr double kNone = std::numeric_limits<double>::quiet_NaN();

/// One request, in seconds since it was due or sent.
struct RequestFigures {
  double first_token = 0;
  double end = 0;
  std::vector<double> gaps;  ///< between the arrivals of its later pieces
  int64_t input_tokens = 0;
  int64_t output_tokens = 0;
};

struct ServingRun {
  std::vector<RequestFigures> requests;  ///< those that were answered
  int64_t failed = 0;
  double seconds = 0;  ///< from the first request to the last answer
};

/// completed, failed, duration_s, request_throughput, output_throughput, total_token_throughput, and mean_,
/// median_ and p99_ of ttft_ms, tpot_ms, itl_ms and e2el_ms, which are kNone of nothing.
nlohmann::json serving_json(const ServingRun& run);
/// The same figures of each request: ttft_ms, e2el_ms, input_tokens, output_tokens, as lists of equal length.
nlohmann::json samples_json(const ServingRun& run);
std::string serving_table(const nlohmann::json& figures);
/// The line below it on requests that were cut to the model; nothing if there is none.
std::string cut_line(int64_t requests);

/// `sum` over `count`; kNone of nothing.
double mean(double sum, size_t count);
/// A figure as tables show it: "-" for kNone.
std::string decimal(const nlohmann::json& figure, int decimals);

}  // namespace spinfer
