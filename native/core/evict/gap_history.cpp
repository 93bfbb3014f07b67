#include "gap_history.hpp"

#include <algorithm>
#include <bit>
#include <utility>

#include "../base/assert.hpp"

namespace saga {
namespace {

constexpr std::uint8_t kNoHistoryBin = 15;
constexpr double kLongGap = 16;  // seconds

double seconds(Time time) { return static_cast<double>(time) * 1e-6; }

// log2, linear between powers of two. x must be positive.
float rough_log2(double x) {
  const auto bits = std::bit_cast<std::uint64_t>(x);
  const auto order = static_cast<std::int64_t>(bits >> 52) - 1023;
  const double part = std::bit_cast<double>((bits & 0xFFFFFFFFFFFFFull) | 0x3FF0000000000000ull) - 1;
  return static_cast<float>(static_cast<double>(order) + part);
}

std::uint8_t bin(float x, float low, float step) {
  const float place = (x - low) / step;
  return place <= 0 ? 0 : place >= 14 ? 14 : static_cast<std::uint8_t>(place);
}

std::uint8_t history_bin(bool there, float x, float low, float step) {
  return there ? bin(x, low, step) : kNoHistoryBin;
}

std::uint8_t level(float x, float a, float b, float c) {
  return static_cast<std::uint8_t>((x >= a) + (x >= b) + (x >= c));
}

void smooth(float& mean, float x, float rate, bool first) { mean = first ? x : mean + rate * (x - mean); }

}  // namespace

void GapHistory::call_started(PromptKind kind, std::uint32_t path_pages, std::uint32_t new_pages) {
  kind_ = kind;
  path_pages_ = path_pages;
  new_pages_ = new_pages;
  ++calls_;
  if (kind == PromptKind::kUser) calls_since_human_ = 0;
  ++calls_since_human_;
}

void GapHistory::gap_ended(Time gap, ToolGaps& tools) {
  const float lg = rough_log2(seconds(gap) + 0.06);
  if (stop_ == StopReason::kEndTurn) {
    smooth(human_, lg, 0.3f, human_gaps_++ == 0);
    return;
  }
  const bool first = gaps_++ == 0;
  last_ = {lg, last_[0], last_[1]};
  smooth(smoothed_[0], lg, 0.4f, first);
  smooth(smoothed_[1], lg, 0.15f, first);
  smooth(smoothed_[2], lg, 0.04f, first);
  smooth(long_share_, seconds(gap) > kLongGap ? 1.0f : 0.0f, 0.1f, first);
  longest_ = first ? lg : std::max(lg, longest_ - 0.05f * (longest_ + 4));
  const auto tool = static_cast<std::size_t>(tool_);
  smooth(by_tool_[tool], lg, 0.25f, !std::exchange(tool_seen_[tool], true));
  smooth(tools.smoothed[tool], lg, 0.03f, !std::exchange(tools.seen[tool], true));
}

std::uint32_t GapHistory::gap_level() const {
  if (gaps_ == 0) return 0;
  const float lg = smoothed_[1];
  return 1u + level(lg, 0.585f, 3.0f, 5.32f) + (lg >= 7.64f ? 1u : 0u);
}

void GapHistory::call_ended(StopReason stop, ToolClass tool, std::uint32_t output_tokens, std::uint64_t prompt_tokens,
                            Time ran, const ToolGaps& tools) {
  smooth(call_time_, rough_log2(seconds(ran) + 0.1), 0.1f, calls_ == 1);
  call_told(stop, tool, output_tokens, prompt_tokens, ran, tools);
}

void GapHistory::call_told(StopReason stop, ToolClass tool, std::uint32_t output_tokens, std::uint64_t prompt_tokens,
                           Time ran, const ToolGaps& tools) {
  stop_ = stop;
  tool_ = tool;
  if (!past()) return;  // nobody asks for the features
  const float call_time = rough_log2(seconds(ran) + 0.1);
  const float output = rough_log2(static_cast<double>(output_tokens) + 1);
  const bool past = gaps_ > 0;
  const auto t = static_cast<std::size_t>(tool);
  const std::uint8_t output_level = level(output, 6, 8, 10);
  const std::uint8_t smoothed_level = past ? level(smoothed_[1], 0, 3, 6) : std::uint8_t{0};
  const std::uint8_t last_level = past ? static_cast<std::uint8_t>(1 + level(last_[0], -2, 2, 5)) : std::uint8_t{0};
  const std::uint8_t share_level = past ? level(long_share_, 0.05f, 0.15f, 0.35f) : std::uint8_t{0};
  features_ = {
      static_cast<std::uint8_t>(stop),
      bin(output, 3, 0.8f),
      bin(rough_log2(static_cast<double>(prompt_tokens) + 1), 12, 0.5f),
      bin(rough_log2(static_cast<double>(new_pages_) + 1), 0, 0.7f),
      bin(call_time, -1, 0.6f),
      history_bin(gaps_ > 0, last_[0], -4, 1.2f),
      history_bin(gaps_ > 1, last_[1], -4, 1.2f),
      history_bin(gaps_ > 2, last_[2], -4, 1.2f),
      history_bin(past, smoothed_[0], -4, 0.8f),
      history_bin(past, smoothed_[1], -4, 0.8f),
      history_bin(past, smoothed_[2], -4, 0.8f),
      history_bin(past, long_share_, 0, 0.05f),
      history_bin(past, longest_, -4, 1.2f),
      history_bin(human_gaps_ > 0, human_, -2, 1.2f),
      bin(rough_log2(static_cast<double>(calls_since_human_) + 1), 0, 0.6f),
      bin(rough_log2(static_cast<double>(calls_) + 1), 0, 0.6f),
      static_cast<std::uint8_t>(kind_),
      static_cast<std::uint8_t>(tool),
      history_bin(tools.seen[t], tools.smoothed[t], -4, 0.8f),
      history_bin(tool_seen_[t], by_tool_[t], -4, 0.9f),
      bin(call_time_, -1, 0.6f),
      static_cast<std::uint8_t>(output_level * 4 + smoothed_level),
      static_cast<std::uint8_t>(static_cast<std::uint32_t>(stop) * 5 + last_level),
      static_cast<std::uint8_t>(share_level * 4 + output_level),
  };
}

}  // namespace saga
