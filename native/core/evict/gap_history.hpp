// GapHistory: what a thread's past says of its next gap, as the features of GapCorrection.
//
// Smoothed logarithms of its gaps (apart those that a human ended: after end_turn), how long its calls take, how many there were.
// All O(1), in float arithmetic of a fixed order; logarithms are rough (linear between powers of two), for they end in bins.
// About 130 bytes.
#pragma once

#include <array>
#include <cstdint>

#include "../base/types.hpp"
#include "gap_correction.hpp"

namespace saga {

// The smoothed gap after each tool, over all threads.
struct ToolGaps {
  std::array<float, 5> smoothed{};
  std::array<bool, 5> seen{};
};

class GapHistory {
 public:
  // The events of a thread, in this order: call_started, call_ended, gap_ended, call_started ...
  void call_started(PromptKind kind, std::uint32_t path_pages, std::uint32_t new_pages);
  // Afterwards features() are those of the gap that begins.
  void call_ended(StopReason stop, ToolClass tool, std::uint32_t output_tokens, std::uint64_t prompt_tokens, Time ran,
                  const ToolGaps& tools);
  void gap_ended(Time gap, ToolGaps& tools);
  // During a gap: features() as if call_ended had been told this. `prompt_tokens` and `ran` as there.
  void call_told(StopReason stop, ToolClass tool, std::uint32_t output_tokens, std::uint64_t prompt_tokens, Time ran,
                 const ToolGaps& tools);

  // Whether there is anything to correct by. Without, the class tables alone count, and features() say nothing.
  bool past() const { return gaps_ + human_gaps_ > 0; }
  const GapCorrection::Features& features() const { return features_; }
  std::uint32_t calls() const { return calls_; }
  std::uint32_t path_pages() const { return path_pages_; }
  // 0: no gap yet; else 1 to 5 for below 1.5, 8, 40, 200 s and above. A level of the tables of starts.
  std::uint32_t gap_level() const;

 private:
  GapCorrection::Features features_{};
  std::uint32_t calls_ = 0;
  std::uint32_t calls_since_human_ = 0;
  std::uint32_t gaps_ = 0;  // but for those that a human ended
  std::uint32_t human_gaps_ = 0;
  std::uint32_t path_pages_ = 0;
  std::uint32_t new_pages_ = 0;
  std::array<float, 3> last_{};      // the last three gaps
  std::array<float, 3> smoothed_{};  // rates .4, .15, .04
  float long_share_ = 0;             // of gaps above 16 s
  float longest_ = 0;                // decays by a twentieth a gap
  float human_ = 0;
  float call_time_ = 0;
  std::array<float, 5> by_tool_{};
  std::array<bool, 5> tool_seen_{};
  PromptKind kind_ = PromptKind::kStart;
  StopReason stop_ = StopReason::kUnknown;
  ToolClass tool_ = ToolClass::kNone;
};

}  // namespace saga
