// KV event sources of the C interface: checks, then native/core/vllm/kv_event_source.hpp. The engine is told through the C interface
// itself, as any caller would.
#include <cstddef>
#include <cstring>
#include <string_view>

#include "../core/vllm/kv_event_source.hpp"
#include "check.hpp"

using namespace saga;
using namespace saga::capi;

static_assert(SAGA_KV_GROUP_KIND == KvUncertain::kGroupKind && SAGA_KV_GROUP_UNSTATED == KvUncertain::kGroupUnstated &&
              SAGA_KV_GROUP_LIMIT == KvUncertain::kGroupLimit && SAGA_KV_BLOCK_SIZE == KvUncertain::kBlockSize &&
              SAGA_KV_WINDOW_UNSTATED == KvUncertain::kWindowUnstated &&
              SAGA_KV_EVENT_REFUSED == KvUncertain::kEventRefused && SAGA_KV_SOURCE_FULL == KvUncertain::kSourceFull &&
              SAGA_KV_ENGINE_FULL == KvUncertain::kSinkFull);
static_assert(SAGA_KV_ENGINE_FULL == 1u << (SAGA_KV_UNCERTAIN_COUNT - 1));
// The C and the C++ counts are one layout.
static_assert(sizeof(saga_kv_counts_t) == sizeof(KvCounts));
static_assert(offsetof(saga_kv_counts_t, group_events) == offsetof(KvCounts, group_events));
static_assert(offsetof(saga_kv_counts_t, unknown_removals) == offsetof(KvCounts, unknown_removals));
static_assert(offsetof(saga_kv_counts_t, engine_stored) == offsetof(KvCounts, sink_stored));
static_assert(offsetof(saga_kv_counts_t, skipped_fields) == offsetof(KvCounts, skipped_fields));

struct saga_kv_source_t {
  explicit saga_kv_source_t(const KvEventSourceOptions& options) : source(options) {}
  KvEventSource source;
  bool broken = false;  // memory ran out in the middle of a batch
};

namespace {

constexpr std::uint64_t kMostBlocks = std::uint64_t{1} << 28;
constexpr std::uint64_t kLeastBatch = 64;
constexpr std::uint64_t kMostBatch = std::uint64_t{1} << 30;

saga_kv_source_options_t default_options() {
  const KvEventSourceOptions defaults;
  saga_kv_source_options_t options{};
  options.algorithm = SAGA_HASH_SAGA;
  options.block_tokens = defaults.block_tokens;
  options.max_blocks = defaults.max_blocks;
  options.max_batch_bytes = defaults.max_batch_bytes;
  return options;
}

// One worker of an engine, at one time.
class EngineSink final : public ResidencySink {
 public:
  EngineSink(saga_engine_t* engine, std::uint64_t now, std::uint32_t worker)
      : engine_(engine), now_(now), worker_(worker) {}

  // An event that changes nothing: the engine answers it as it would any other of this time and worker.
  Status ready() override { return removed(Tier::kGpu, {}); }

  Status stored(Tier tier, BlockHash parent, std::span<const BlockHash> hashes) override {
    return status_of(
        saga_engine_blocks_stored(engine_, now_, worker_, tier_of(tier), parent, hashes.data(), hashes.size()));
  }
  Status removed(Tier tier, std::span<const BlockHash> hashes) override {
    return status_of(saga_engine_blocks_removed(engine_, now_, worker_, tier_of(tier), hashes.data(), hashes.size()));
  }
  Status cleared() override { return status_of(saga_engine_blocks_cleared(engine_, now_, worker_)); }

  Status window_blocks(std::uint32_t blocks) override {
    return status_of(saga_engine_worker_window(engine_, now_, worker_, blocks));
  }
  Status window_stored(std::span<const BlockHash> hashes) override {
    return status_of(saga_engine_window_stored(engine_, now_, worker_, hashes.data(), hashes.size()));
  }
  Status window_removed(std::span<const BlockHash> hashes) override {
    return status_of(saga_engine_window_removed(engine_, now_, worker_, hashes.data(), hashes.size()));
  }

 private:
  static Status status_of(saga_status_t status) { return static_cast<Status>(status); }
  static saga_tier_t tier_of(Tier tier) { return static_cast<saga_tier_t>(tier); }

  saga_engine_t* engine_;
  std::uint64_t now_;
  std::uint32_t worker_;
};

// As in engine.cpp: a state in whose change memory ran out is not used again.
template <typename Change>
saga_status_t change(saga_kv_source_t* source, Change&& make) {
  if (source->broken) return SAGA_ERR_OUT_OF_MEMORY;
  source->broken = true;
  return guarded([&] {
    const Status status = make();
    source->broken = false;
    return to_c(status);
  });
}

template <typename Result>
bool result_valid(const Result* result) {
  constexpr std::uint32_t kMost = 4096;
  return result != nullptr && result->struct_size >= sizeof(result->struct_size) && result->struct_size <= kMost;
}

saga_kv_counts_t to_c(const KvCounts& counts) {
  saga_kv_counts_t copied;
  std::memcpy(&copied, &counts, sizeof copied);
  return copied;
}

bool text_valid(const char* text, std::size_t size) { return is_array(text, size) && size <= kMostSaltPart; }

}  // namespace

extern "C" {

void saga_kv_source_options_init_sized(saga_kv_source_options_t* options, uint32_t struct_size) {
  write_options(default_options(), options, struct_size);
}

saga_status_t saga_kv_source_create(const saga_kv_source_options_t* options, saga_kv_source_t** source) {
  saga_kv_source_options_t given = default_options();
  if (source == nullptr || !read_options(options, &given) || given.algorithm > SAGA_HASH_XXHASH_CBOR_TAGGED ||
      !in_range(given.block_tokens, 1, kMaxBlockTokens) || given.reserved != 0 ||
      !in_range(given.max_blocks, 1, kMostBlocks) || !in_range(given.max_batch_bytes, kLeastBatch, kMostBatch)) {
    return SAGA_ERR_INVALID_ARGUMENT;
  }
  return guarded([&] {
    *source = new saga_kv_source_t({
        .naming = given.algorithm == SAGA_HASH_SAGA ? KvNaming::kTranslate : KvNaming::kDirect,
        .block_tokens = given.block_tokens,
        .max_blocks = given.max_blocks,
        .max_batch_bytes = given.max_batch_bytes,
    });
    return SAGA_OK;
  });
}

void saga_kv_source_destroy(saga_kv_source_t* source) { delete source; }

saga_status_t saga_kv_source_apply(saga_kv_source_t* source, saga_engine_t* engine, uint64_t now, uint32_t worker,
                                   const uint8_t* payload, size_t size, saga_kv_report_t* report) {
  if (source == nullptr || engine == nullptr || !is_array(payload, size) || !result_valid(report)) {
    return SAGA_ERR_INVALID_ARGUMENT;
  }
  EngineSink sink(engine, now, worker);
  KvReport done;
  const saga_status_t status =
      change(source, [&] { return source->source.apply(to_span(payload, size), sink, &done); });
  if (status != SAGA_OK) return status;
  saga_kv_report_t written{};
  written.data_parallel_rank = done.rank;
  written.timestamp = done.timestamp;
  written.uncertain = source->source.uncertain();
  written.engine_status = static_cast<std::uint32_t>(done.sink_status);
  written.counts = to_c(done.counts);
  write_options(written, report, report->struct_size);
  return SAGA_OK;
}

saga_status_t saga_kv_source_reset(saga_kv_source_t* source, saga_engine_t* engine, uint64_t now, uint32_t worker) {
  if (source == nullptr || engine == nullptr) return SAGA_ERR_INVALID_ARGUMENT;
  EngineSink sink(engine, now, worker);
  return change(source, [&] { return source->source.reset(sink); });
}

saga_status_t saga_kv_source_sync(saga_kv_source_t* source, saga_engine_t* engine, uint64_t now, uint32_t worker) {
  if (source == nullptr || engine == nullptr) return SAGA_ERR_INVALID_ARGUMENT;
  EngineSink sink(engine, now, worker);
  return change(source, [&] { return source->source.sync(sink); });
}

saga_status_t saga_kv_source_usable(const saga_kv_source_t* source, saga_tier_t tier, const uint64_t* chain,
                                    size_t count, uint32_t full_depth, uint32_t* usable) {
  if (source == nullptr || static_cast<std::uint32_t>(tier) >= SAGA_TIER_COUNT || !is_array(chain, count) ||
      count >= kNone || usable == nullptr) {
    return SAGA_ERR_INVALID_ARGUMENT;
  }
  *usable = source->source.usable(static_cast<Tier>(tier), to_span(chain, count), full_depth);
  return SAGA_OK;
}

saga_status_t saga_kv_source_holds(const saga_kv_source_t* source, uint32_t group, saga_tier_t tier, uint64_t hash,
                                   uint32_t* copies) {
  if (source == nullptr || group >= kMostKvGroups || static_cast<std::uint32_t>(tier) >= SAGA_TIER_COUNT ||
      copies == nullptr) {
    return SAGA_ERR_INVALID_ARGUMENT;
  }
  *copies = source->source.copies(group, static_cast<Tier>(tier), hash);
  return SAGA_OK;
}

saga_status_t saga_kv_source_stats(const saga_kv_source_t* source, saga_kv_stats_t* stats) {
  if (source == nullptr || !result_valid(stats)) return SAGA_ERR_INVALID_ARGUMENT;
  const KvEventSource& known = source->source;
  saga_kv_stats_t written{};
  written.uncertain = known.uncertain();
  written.groups = known.groups();
  written.window_blocks = known.window_blocks();
  written.engine_behind = known.is_behind() ? 1 : 0;
  written.batches = known.batches();
  written.blocks = known.blocks();
  written.copies = known.copies();
  written.nameless_blocks = known.nameless_blocks();
  written.memory_bytes = known.memory_bytes();
  written.counts = to_c(known.totals());
  write_options(written, stats, stats->struct_size);
  return SAGA_OK;
}

const char* saga_kv_uncertain_text(saga_kv_uncertain_t reason) {
  switch (reason) {
    case SAGA_KV_GROUP_KIND:
      return "a KV-cache group keeps neither every block nor a window, or changed its kind";
    case SAGA_KV_GROUP_UNSTATED:
      return "nobody stated the kind of a KV-cache group beside group 0";
    case SAGA_KV_GROUP_LIMIT:
      return "there are more KV-cache groups than can be followed";
    case SAGA_KV_BLOCK_SIZE:
      return "a KV-cache group has another block size";
    case SAGA_KV_WINDOW_UNSTATED:
      return "nobody stated how long the window of a KV-cache group is";
    case SAGA_KV_EVENT_REFUSED:
      return "an event could not be understood";
    case SAGA_KV_SOURCE_FULL:
      return "there was no room for all blocks and copies: raise the source's bound";
    case SAGA_KV_ENGINE_FULL:
      return "the engine had no room for all blocks: raise its bound";
  }
  return "no such reason";
}

saga_status_t saga_kv_source_verify(const saga_kv_source_t* source, uint32_t* intact) {
  if (source == nullptr || intact == nullptr) return SAGA_ERR_INVALID_ARGUMENT;
  return guarded([&] {
    *intact = source->source.verify() ? 1 : 0;
    return SAGA_OK;
  });
}

saga_status_t saga_kv_batch_rank(const uint8_t* payload, size_t size, int32_t* rank) {
  if (!is_array(payload, size) || rank == nullptr) return SAGA_ERR_INVALID_ARGUMENT;
  KvBatch batch;
  if (!msgpack_valid(to_span(payload, size)) || !read_kv_batch(to_span(payload, size), &batch)) {
    return SAGA_ERR_INVALID_ARGUMENT;
  }
  batch.events.skip(batch.event_count);
  *rank = read_kv_rank(batch.events);
  return SAGA_OK;
}

saga_status_t saga_chain_salt(const char* cache_salt, size_t cache_salt_size, const char* lora_name,
                              size_t lora_name_size, char* salt, size_t capacity, size_t* size) {
  if (!text_valid(cache_salt, cache_salt_size) || !text_valid(lora_name, lora_name_size) || !is_array(salt, capacity) ||
      size == nullptr) {
    return SAGA_ERR_INVALID_ARGUMENT;
  }
  const auto text_of = [](const char* text, std::size_t length) {
    return length == 0 ? std::string_view() : std::string_view(text, length);
  };
  char written[kMostChainSalt];
  const std::size_t length =
      write_chain_salt(text_of(cache_salt, cache_salt_size), text_of(lora_name, lora_name_size), written);
  if (length > capacity) return SAGA_ERR_INVALID_ARGUMENT;
  if (length != 0) std::memcpy(salt, written, length);
  *size = length;
  return SAGA_OK;
}

}  // extern "C"
