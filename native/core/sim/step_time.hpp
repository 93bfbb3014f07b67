// Step-time model: how long one step of the inference engine takes, from what is in it.
//
// A step of continuous batching computes n = P + B tokens: P of prompts (chunks of prefill) and one for each
// of B decoding requests. Matrix products and all-reduces depend on these counts; attention depends on the
// pairs of tokens that prefill compares (S) and on the contexts that decode reads (KV):
//
//     time = tokens(P, B) + s * S + k * KV
//
// Two curves for the first term. kLinear: intercept + a * P + b * B, the published fit; it overstates steps
// of 128 to 512 tokens by up to a third, because real kernels are flat there (they wait for the weights).
// kInterpolated: the table from which that fit was made, linear between its points, by n = P + B; beyond its
// last point along its last slope. Agents' calls add a few hundred tokens each and so live exactly where the
// two differ; the simulator's default is the table.
//
// **Grain** g: one token of the model stands for g tokens, and one step for g steps with g times as many tokens in all (each of them
// computes what the one computes by count). So tokens(P, B) is multiplied by g, and the attention terms by g * g. What is played
// on real servers with prompts and answers a g-th as long is simulated that way.
//
// All coefficients are whole picoseconds, and a step is the sum rounded to the nearest microsecond (half up):
// integers throughout, so that every machine computes the same times. Cost: a handful of multiplications,
// plus a look-up of one of eight segments. Immutable after construction. The figures and their sources:
// data/step_time.inc.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "../base/types.hpp"
#include "../place/cost_model.hpp"

namespace saga {

enum class Hardware : std::uint8_t { kH100Tp4 = 0, kH100Tp8 = 1, kA100Tp4 = 2, kA100Tp8 = 3 };
inline constexpr std::uint32_t kHardwareCount = 4;

const char* hardware_name(Hardware hardware);  // "h100-tp4", ...

enum class StepTimeCurve : std::uint8_t { kLinear = 0, kInterpolated = 1 };

// What a step computes.
struct StepLoad {
  std::uint64_t prefill_tokens = 0;   // P
  std::uint64_t prefill_pairs2 = 0;   // 2 S: the sum over chunks of t * (2 c + t); doubled to stay an integer
  std::uint64_t decode_requests = 0;  // B
  std::uint64_t decode_context = 0;  // KV: tokens that the decoding requests attend to, the one being computed included

  void add_prefill(std::uint64_t tokens, std::uint64_t computed_before) {
    prefill_tokens += tokens;
    prefill_pairs2 += tokens * (2 * computed_before + tokens);
  }
  void add_decode(std::uint64_t context) {
    ++decode_requests;
    decode_context += context;
  }
};

class StepTimeModel {
 public:
  static constexpr std::uint64_t kPicosecondsPerMicrosecond = 1'000'000;

  explicit StepTimeModel(Hardware hardware, StepTimeCurve curve = StepTimeCurve::kInterpolated,
                         bool with_attention = true, std::uint32_t grain = 1);

  Time step(const StepLoad& load) const { return round(picoseconds(load)); }

  std::uint64_t picoseconds(const StepLoad& load) const {
    return token_picoseconds(load.prefill_tokens, load.decode_requests) + load.prefill_pairs2 * half_pair_ +
           load.decode_context * context_;
  }

  // The two parts of a pure decode step: time = round(token_picoseconds(0, B) + KV * context_picoseconds()).
  std::uint64_t token_picoseconds(std::uint64_t prefill_tokens, std::uint64_t decode_requests) const;
  std::uint64_t context_picoseconds() const { return context_; }

  static Time round(std::uint64_t picoseconds) {
    return (picoseconds + kPicosecondsPerMicrosecond / 2) / kPicosecondsPerMicrosecond;
  }

  bool verify() const;  // the curve starts above zero and its last segment rises

 private:
  StepTimeCurve curve_;
  std::uint64_t intercept_;
  std::uint64_t per_prefill_token_;
  std::uint64_t per_decode_request_;
  std::uint64_t half_pair_;
  std::uint64_t context_;
  std::array<std::uint64_t, 9> sums_;
};

// The coefficients that a scheduler starts from for such a machine: the slopes of the model where agents' calls run, between 1
// and 32 decoding calls and chunks of 256 to 1,024 tokens.
StepCosts step_costs(const StepTimeModel& model);

// One comparison of the model with a published figure; relative_error = model / reference - 1.
struct StepTimeComparison {
  enum class Source : std::uint8_t { kVidurSum, kSplitwisePrefill, kSplitwiseDecode };
  Hardware hardware;
  StepTimeCurve curve;
  Source source;
  std::uint32_t tokens;             // n; for splitwise P, or B
  std::uint32_t context_a_request;  // splitwise decode only
  double reference_milliseconds;
  double model_milliseconds;
  double relative_error;
};

// The whole comparison, for reports: every machine and curve against the sums by n (attention terms 0) and
// against splitwise's two rows (attention included).
std::vector<StepTimeComparison> compare_step_time_model();

}  // namespace saga
