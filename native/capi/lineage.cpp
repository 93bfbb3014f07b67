// Lineages of the C interface: checks, then native/core/graph/lineage.hpp. The core asserts where a caller could be wrong;
// everything it asserts is checked here first, so that it is a status.
#include "../core/graph/lineage.hpp"

#include <algorithm>
#include <array>
#include <cstddef>
#include <vector>

#include "../core/hash/xxh3.hpp"
#include "check.hpp"

using namespace saga;
using namespace saga::capi;

static_assert(SAGA_LINEAGE_NEW == static_cast<int>(LineageKind::kNew) &&
              SAGA_LINEAGE_CONTINUED == static_cast<int>(LineageKind::kContinued) &&
              SAGA_LINEAGE_FORKED == static_cast<int>(LineageKind::kForked) &&
              SAGA_LINEAGE_ROLLED_BACK == static_cast<int>(LineageKind::kRolledBack) &&
              SAGA_LINEAGE_COMPACTED == static_cast<int>(LineageKind::kCompacted));
static_assert(SAGA_NO_WORKFLOW_ID == Lineage::kNoId);

struct saga_lineage_t {
  explicit saga_lineage_t(const LineageOptions& given) : options(given), lineage(given) {}
  LineageOptions options;
  Lineage lineage;
  std::array<std::uint64_t, SAGA_LINEAGE_KIND_COUNT> calls{};
  std::uint64_t superseded = 0;
  std::uint64_t forgotten = 0;
};

namespace {

constexpr std::uint32_t kMostHeads = 1u << 20;
constexpr std::uint32_t kMostBlocks = 1u << 26;
constexpr std::uint32_t kMostSlackBlocks = 4096;

saga_lineage_options_t default_options() {
  const LineageOptions defaults;
  saga_lineage_options_t options{};
  options.max_heads = defaults.max_heads;
  options.max_blocks = defaults.max_blocks;
  options.slack_blocks = defaults.slack_blocks;
  return options;
}

}  // namespace

extern "C" {

void saga_lineage_options_init_sized(saga_lineage_options_t* options, uint32_t struct_size) {
  write_options(default_options(), options, struct_size);
}

saga_status_t saga_lineage_create(const saga_lineage_options_t* options, saga_lineage_t** lineage) {
  saga_lineage_options_t given = default_options();
  if (lineage == nullptr || !read_options(options, &given) || !in_range(given.max_heads, 2, kMostHeads) ||
      !in_range(given.max_blocks, 1, kMostBlocks) || given.slack_blocks > kMostSlackBlocks) {
    return SAGA_ERR_INVALID_ARGUMENT;
  }
  return guarded([&] {
    *lineage = new saga_lineage_t(
        {.max_heads = given.max_heads, .max_blocks = given.max_blocks, .slack_blocks = given.slack_blocks});
    return SAGA_OK;
  });
}

void saga_lineage_destroy(saga_lineage_t* lineage) { delete lineage; }

saga_status_t saga_lineage_id_of(const char* text, size_t size, uint64_t* id) {
  if (id == nullptr || size == 0 || !is_array(text, size)) return SAGA_ERR_INVALID_ARGUMENT;
  const std::uint64_t hash = xxh3_128(text, size).low;
  *id = hash == Lineage::kNoId ? 0 : hash;
  return SAGA_OK;
}

saga_status_t saga_lineage_identify(saga_lineage_t* lineage, const uint64_t* hashes, size_t count, uint64_t id,
                                    saga_lineage_match_t* match) {
  if (lineage == nullptr || match == nullptr || !is_array(hashes, count) || count >= kNone) {
    return SAGA_ERR_INVALID_ARGUMENT;
  }
  // The core needs two heads that do not run: the one that is left, and one to be forgotten.
  if (lineage->lineage.running() + 2 > lineage->options.max_heads) return SAGA_ERR_FULL;
  const LineageMatch found = lineage->lineage.call_started(hashes, static_cast<std::uint32_t>(count), id);
  ++lineage->calls[static_cast<std::size_t>(found.kind)];
  if (found.superseded != kNone) ++lineage->superseded;
  lineage->forgotten += lineage->lineage.forgotten().size();
  match->kind = static_cast<saga_lineage_kind_t>(found.kind);
  match->workflow = found.workflow;
  match->head = found.head;
  match->superseded = found.superseded;
  match->common_blocks = found.common_blocks;
  match->known_blocks = found.known_blocks;
  return SAGA_OK;
}

saga_status_t saga_lineage_ended(saga_lineage_t* lineage, uint32_t head) {
  if (lineage == nullptr) return SAGA_ERR_INVALID_ARGUMENT;
  if (head >= lineage->options.max_heads || !lineage->lineage.is_running(head)) return SAGA_ERR_NOT_FOUND;
  lineage->lineage.call_ended(head);
  return SAGA_OK;
}

saga_status_t saga_lineage_closed(saga_lineage_t* lineage, uint32_t workflow) {
  if (lineage == nullptr) return SAGA_ERR_INVALID_ARGUMENT;
  if (workflow >= lineage->options.max_heads || !lineage->lineage.is_open(workflow)) return SAGA_ERR_NOT_FOUND;
  if (lineage->lineage.is_busy(workflow)) return SAGA_ERR_WRONG_STATE;
  lineage->lineage.workflow_closed(workflow);
  return SAGA_OK;
}

saga_status_t saga_lineage_forgotten(const saga_lineage_t* lineage, uint32_t* workflows, size_t capacity,
                                     size_t* count) {
  if (lineage == nullptr || count == nullptr || !is_array(workflows, capacity)) return SAGA_ERR_INVALID_ARGUMENT;
  const std::vector<std::uint32_t>& forgotten = lineage->lineage.forgotten();
  std::copy_n(forgotten.begin(), std::min(capacity, forgotten.size()), workflows);
  *count = forgotten.size();
  return SAGA_OK;
}

saga_status_t saga_lineage_stats(const saga_lineage_t* lineage, saga_lineage_stats_t* stats) {
  if (lineage == nullptr || stats == nullptr) return SAGA_ERR_INVALID_ARGUMENT;
  stats->workflows = lineage->lineage.workflows();
  stats->heads = lineage->lineage.heads();
  stats->running_calls = lineage->lineage.running();
  stats->blocks = lineage->lineage.blocks();
  std::copy(lineage->calls.begin(), lineage->calls.end(), stats->calls_total);
  stats->superseded_total = lineage->superseded;
  stats->forgotten_total = lineage->forgotten;
  stats->memory_bytes = lineage->lineage.memory_bytes();
  return SAGA_OK;
}

saga_status_t saga_lineage_verify(const saga_lineage_t* lineage, uint32_t* intact) {
  if (lineage == nullptr || intact == nullptr) return SAGA_ERR_INVALID_ARGUMENT;
  return guarded([&] {
    *intact = lineage->lineage.verify() ? 1 : 0;
    return SAGA_OK;
  });
}

}  // extern "C"
