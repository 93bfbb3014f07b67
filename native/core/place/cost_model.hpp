// CostModel: what a call costs on a worker, in predicted GPU seconds; learned online from what workers do.
//
// One step of continuous batching takes, from what is in it (the same form as the published measurements, sim/step_time.hpp):
//
//     base + per_call * calls + per_context_token * (their contexts) + per_prefill_token * (new prompt tokens) + attention
//
// so a decoding call waits a step for each token, and every call that joins makes the steps of all others longer. The
// coefficients start from a published profile (or zeroed ones of an unknown engine, with the profile of its class of machine)
// and a factor per worker follows what calls there really took: an exponential mean of observed over predicted time, held
// within [1/4, 4]. All arithmetic is + - * /, so every machine decides alike.
//
// Cost: O(1) everything. Memory: 8 bytes a worker.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "../base/types.hpp"

namespace saga {

// Seconds.
struct StepCosts {
  double base = 28.6e-3;
  double per_call = 0.30e-3;          // of each decoding call in a step: batch growth where batches are small
  double per_context_token = 7.8e-8;  // KV read for each token of context, each step
  double per_prefill_token = 0.178e-3;
  double per_prefill_pair = 4.7e-9;  // attention: new tokens times the tokens before them
};

class CostModel {
 public:
  CostModel(const StepCosts& costs, std::uint32_t workers) : costs_(costs), factor_(workers, 1.0) {}

  const StepCosts& costs() const { return costs_; }
  double factor(WorkerId worker) const { return factor_[worker]; }

  double step(WorkerId worker, double calls, double context_tokens) const {
    return factor_[worker] * (costs_.base + costs_.per_call * calls + costs_.per_context_token * context_tokens);
  }
  // By a worker of factor 1.
  double prefill(double tokens, double cached) const {
    return costs_.per_prefill_token * tokens + costs_.per_prefill_pair * tokens * (cached + tokens * 0.5);
  }
  double prefill(WorkerId worker, double tokens, double cached) const {
    return factor_[worker] * prefill(tokens, cached);
  }
  // Nothing is known of the worker.
  void reset(WorkerId worker) { factor_[worker] = 1; }
  // A call took `seconds` where `predicted` had been expected.
  void observe(WorkerId worker, double predicted, double seconds) {
    if (!(predicted > 0)) return;
    const double ratio = std::clamp(factor_[worker] * seconds / predicted, 0.25, 4.0);
    factor_[worker] += kRate * std::min(1.0, predicted / kWholeSeconds) * (ratio - factor_[worker]);
  }

 private:
  static constexpr double kRate = 1.0 / 64;
  static constexpr double kWholeSeconds = 1;  // shorter calls, of a few steps, say less in proportion
  StepCosts costs_;
  std::vector<double> factor_;
};

}  // namespace saga
