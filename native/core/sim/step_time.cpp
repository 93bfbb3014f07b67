#include "step_time.hpp"

#include "../base/assert.hpp"

namespace saga {

namespace {

constexpr std::size_t kSumCount = 9;
constexpr std::array<std::uint64_t, kSumCount> kSumTokens = {1, 16, 64, 128, 256, 512, 1024, 2048, 4096};

struct DefaultRow {
  double step, prefill_token, pair, decode_request, context;
};
struct SplitwiseRow {
  double prefill_step, prefill_token, decode_step, decode_request, context;
};

constexpr std::size_t index_of(Hardware hardware) { return static_cast<std::size_t>(hardware); }

struct Data {
  std::array<DefaultRow, kHardwareCount> defaults{};
  std::array<std::array<double, kSumCount>, kHardwareCount> sums{};
  std::array<SplitwiseRow, kHardwareCount> splitwise{};
};

constexpr Data load_data() {
  Data data;
#define SAGA_STEP_DEFAULT(machine, step, prefill_token, pair, decode_request, context) \
  data.defaults[index_of(Hardware::machine)] = {step, prefill_token, pair, decode_request, context};
#define SAGA_STEP_SUMS(machine, ...) data.sums[index_of(Hardware::machine)] = {__VA_ARGS__};
#define SAGA_STEP_SPLITWISE(machine, prefill_step, prefill_token, decode_step, decode_request, context) \
  data.splitwise[index_of(Hardware::machine)] = {prefill_step, prefill_token, decode_step, decode_request, context};
#include "data/step_time.inc"
#undef SAGA_STEP_DEFAULT
#undef SAGA_STEP_SUMS
#undef SAGA_STEP_SPLITWISE
  return data;
}

constexpr Data kData = load_data();

// At most ten significant digits: exact after rounding to whole picoseconds.
constexpr std::uint64_t picoseconds_of(double milliseconds) {
  return static_cast<std::uint64_t>(milliseconds * 1e9 + 0.5);
}

}  // namespace

const char* hardware_name(Hardware hardware) {
  switch (hardware) {
    case Hardware::kH100Tp4:
      return "h100-tp4";
    case Hardware::kH100Tp8:
      return "h100-tp8";
    case Hardware::kA100Tp4:
      return "a100-tp4";
    case Hardware::kA100Tp8:
      return "a100-tp8";
  }
  return "";
}

StepTimeModel::StepTimeModel(Hardware hardware, StepTimeCurve curve, bool with_attention, std::uint32_t grain)
    : curve_(curve) {
  const std::uint64_t once = grain;
  const std::uint64_t twice = once * once;
  const DefaultRow& row = kData.defaults[index_of(hardware)];
  intercept_ = once * picoseconds_of(row.step);
  per_prefill_token_ = once * picoseconds_of(row.prefill_token);
  per_decode_request_ = once * picoseconds_of(row.decode_request);
  half_pair_ = with_attention ? twice * (picoseconds_of(row.pair) / 2) : 0;
  context_ = with_attention ? twice * picoseconds_of(row.context) : 0;
  for (std::size_t i = 0; i < kSumCount; ++i) {
    sums_[i] = once * picoseconds_of(kData.sums[index_of(hardware)][i]);
  }
}

std::uint64_t StepTimeModel::token_picoseconds(std::uint64_t prefill_tokens, std::uint64_t decode_requests) const {
  if (curve_ == StepTimeCurve::kLinear) {
    return intercept_ + per_prefill_token_ * prefill_tokens + per_decode_request_ * decode_requests;
  }
  const std::uint64_t n = prefill_tokens + decode_requests;
  if (n <= kSumTokens[0]) return sums_[0];
  std::size_t i = 0;
  while (i + 2 < kSumCount && n > kSumTokens[i + 1]) ++i;
  // Differences are signed: the published table dips once. Division rounds down, of a value that is never
  // negative.
  const auto low = static_cast<std::int64_t>(sums_[i]);
  const auto rise = static_cast<std::int64_t>(sums_[i + 1]) - low;
  const auto offset = static_cast<std::int64_t>(n - kSumTokens[i]);
  const auto width = static_cast<std::int64_t>(kSumTokens[i + 1] - kSumTokens[i]);
  const std::int64_t value = (low * width + rise * offset) / width;
  SAGA_ASSERT(value > 0);
  return static_cast<std::uint64_t>(value);
}

bool StepTimeModel::verify() const {
  if (intercept_ == 0 || sums_[0] == 0) return false;
  return sums_[kSumCount - 1] > sums_[kSumCount - 2];
}

std::vector<StepTimeComparison> compare_step_time_model() {
  std::vector<StepTimeComparison> rows;
  const auto add = [&rows](Hardware hardware, StepTimeCurve curve, StepTimeComparison::Source source,
                           std::uint32_t tokens, std::uint32_t context, double reference,
                           std::uint64_t model_picoseconds) {
    const double model = static_cast<double>(model_picoseconds) / 1e9;
    rows.push_back({hardware, curve, source, tokens, context, reference, model, model / reference - 1.0});
  };
  for (std::uint32_t h = 0; h < kHardwareCount; ++h) {
    const auto hardware = static_cast<Hardware>(h);
    for (const StepTimeCurve curve : {StepTimeCurve::kLinear, StepTimeCurve::kInterpolated}) {
      const StepTimeModel bare(hardware, curve, false);
      for (std::size_t i = 0; i < kSumCount; ++i) {
        const auto n = static_cast<std::uint32_t>(kSumTokens[i]);
        add(hardware, curve, StepTimeComparison::Source::kVidurSum, n, 0, kData.sums[h][i],
            bare.token_picoseconds(n, 0));
      }
      const StepTimeModel full(hardware, curve, true);
      const SplitwiseRow& peer = kData.splitwise[h];
      for (const std::uint32_t tokens : {128u, 512u, 1024u, 2048u, 4096u, 8192u}) {
        StepLoad load;
        load.add_prefill(tokens, 0);
        add(hardware, curve, StepTimeComparison::Source::kSplitwisePrefill, tokens, 0,
            peer.prefill_step + peer.prefill_token * tokens, full.picoseconds(load));
      }
      for (const std::uint32_t batch : {1u, 8u, 32u, 64u}) {
        for (const std::uint32_t context : {1024u, 4096u}) {
          StepLoad load;
          for (std::uint32_t i = 0; i < batch; ++i) load.add_decode(context);
          add(hardware, curve, StepTimeComparison::Source::kSplitwiseDecode, batch, context,
              peer.decode_step + peer.decode_request * batch + peer.context * batch * context, full.picoseconds(load));
        }
      }
    }
  }
  return rows;
}

StepCosts step_costs(const StepTimeModel& model) {
  constexpr double kSecond = 1e12;  // picoseconds
  const auto tokens = [&](std::uint64_t prefill, std::uint64_t decode) {
    return static_cast<double>(model.token_picoseconds(prefill, decode)) / kSecond;
  };
  StepLoad pair;
  pair.prefill_pairs2 = 2'000'000;
  StepCosts costs;
  costs.base = tokens(0, 1);
  costs.per_call = (tokens(0, 32) - tokens(0, 1)) / 31;
  costs.per_prefill_token = (tokens(1024, 0) - tokens(256, 0)) / 768;
  costs.per_context_token = static_cast<double>(model.context_picoseconds()) / kSecond;
  costs.per_prefill_pair = static_cast<double>(model.picoseconds(pair) - model.picoseconds({})) / 1e6 / kSecond;
  return costs;
}

}  // namespace saga
