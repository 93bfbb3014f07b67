// Batch formation of the C interface: checks, then native/core/batch. The core asserts where a caller could be wrong;
// everything it asserts is checked here first, so that it is a status.
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <memory>
#include <vector>

#include "../core/batch/batch_former.hpp"
#include "check.hpp"
#include "evictor_check.hpp"
#include "page_table_handle.hpp"

using namespace saga;
using namespace saga::capi;

static_assert(SAGA_ORDER_FCFS == static_cast<int>(BatchOrder::kFcfs) &&
              SAGA_ORDER_PRIORITY == static_cast<int>(BatchOrder::kPriority) &&
              SAGA_ORDER_BFS == static_cast<int>(BatchOrder::kBfs) &&
              SAGA_ORDER_DFS == static_cast<int>(BatchOrder::kDfs) &&
              SAGA_ORDER_HYBRID == static_cast<int>(BatchOrder::kHybrid) &&
              SAGA_ORDER_SAGA == static_cast<int>(BatchOrder::kSaga));
static_assert(SAGA_PREEMPT_RECOMPUTE == static_cast<int>(Preemption::kRecompute) &&
              SAGA_PREEMPT_SWAP == static_cast<int>(Preemption::kSwap));
static_assert(SAGA_NO_THREAD == BlockEvictor::kNoThread);
static_assert(SAGA_CALL_WAITING == static_cast<int>(BatchCallState::kWaiting) &&
              SAGA_CALL_RUNNING == static_cast<int>(BatchCallState::kRunning) &&
              SAGA_CALL_SWAPPED == static_cast<int>(BatchCallState::kSwapped));
// The C and the C++ update are one layout, so an array of the one is an array of the other.
static_assert(sizeof(saga_block_table_update_t) == sizeof(BlockTableUpdate));
static_assert(offsetof(saga_block_table_update_t, row) == offsetof(BlockTableUpdate, row));
static_assert(offsetof(saga_block_table_update_t, first_block) == offsetof(BlockTableUpdate, first_block));
static_assert(offsetof(saga_block_table_update_t, block_count) == offsetof(BlockTableUpdate, block_count));

struct saga_batch_former_t {
  saga_batch_former_t(saga_page_table_t* pages, const BatchFormerOptions& options)
      : table(pages), former(pages->table, options), copies(options.max_copies) {
    table->attached = true;
    ++table->holders;
  }
  saga_page_table_t* table;
  BatchFormer former;
  std::vector<BlockCopy> copies;  // of the step
};

namespace {

constexpr std::uint32_t kMostCalls = 1u << 20;
constexpr std::uint32_t kMostTokens = 1u << 24;
constexpr std::uint32_t kMostCopies = 1u << 24;
constexpr std::uint64_t kMostHashes = std::uint64_t{1} << 28;

saga_batch_former_options_t default_options() {
  const BatchFormerOptions defaults;
  saga_batch_former_options_t options{};
  options.max_calls = defaults.max_calls;
  options.max_sequences = defaults.max_sequences;
  options.token_budget = defaults.token_budget;
  options.max_prefill_chunk = defaults.max_prefill_chunk;
  options.max_copies = defaults.max_copies;
  options.order = static_cast<saga_batch_order_t>(defaults.order);
  options.preemption = static_cast<saga_preemption_t>(defaults.preemption);
  options.slowest_hit = static_cast<saga_tier_t>(defaults.slowest_hit);
  options.session_affinity = defaults.session_affinity ? 1 : 0;
  options.hit_after_completion = defaults.hit_after_completion ? 1 : 0;
  options.starvation_limit = defaults.starvation_limit;
  return options;
}

saga_batch_call_t default_call() {
  const BatchCall defaults;
  saga_batch_call_t call{};
  call.prompt_tokens = defaults.prompt_tokens;
  call.max_new_tokens = defaults.max_new_tokens;
  call.priority = defaults.priority;
  call.workflow = defaults.workflow;
  call.urgency = defaults.urgency;
  call.thread = defaults.thread;
  call.prompt_kind = static_cast<saga_prompt_kind_t>(defaults.prompt_kind);
  return call;
}

bool options_valid(const saga_batch_former_options_t& options, const PageTable& pages) {
  const bool swaps = options.preemption == SAGA_PREEMPT_SWAP;
  return in_range(options.max_calls, 1, kMostCalls) &&
         std::uint64_t{options.max_calls} * pages.max_blocks_per_sequence() <= kMostHashes &&
         in_range(options.max_sequences, 1, pages.max_sequences() - pages.stats().open_sequences) &&
         in_range(options.token_budget, 1, kMostTokens) && options.max_prefill_chunk <= options.token_budget &&
         options.max_copies <= kMostCopies && static_cast<std::uint32_t>(options.order) < kBatchOrderCount &&
         static_cast<std::uint32_t>(options.preemption) <= SAGA_PREEMPT_SWAP &&
         static_cast<std::uint32_t>(options.slowest_hit) < SAGA_TIER_COUNT && options.session_affinity <= 1 &&
         options.hit_after_completion <= 1 && options.reserved == 0 &&
         (!swaps || (options.max_copies > 0 && pages.pool(Tier::kHost).block_count() > 0)) &&
         (options.slowest_hit == SAGA_TIER_GPU || options.max_copies > 0);
}

bool urgency_valid(const BatchFormer& former, double urgency) {
  return std::isfinite(urgency) && (former.options().order == BatchOrder::kSaga ? urgency > 0 : urgency >= 0);
}

bool arrays_valid(const saga_batch_arrays_t& arrays) {
  const std::size_t calls = arrays.call_capacity;
  return is_array(arrays.calls, calls) && is_array(arrays.rows, calls) && is_array(arrays.first_tokens, calls) &&
         is_array(arrays.token_counts, calls) && is_array(arrays.sequence_lengths, calls) &&
         is_array(arrays.query_starts, calls + 1) && is_array(arrays.slot_mapping, arrays.token_capacity) &&
         is_array(arrays.block_tables, std::size_t{arrays.block_table_rows} * arrays.block_table_width) &&
         is_array(arrays.updates, calls) && is_array(arrays.copies, arrays.copy_capacity) &&
         is_array(arrays.preempted, calls);
}

}  // namespace

extern "C" {

void saga_batch_former_options_init_sized(saga_batch_former_options_t* options, uint32_t struct_size) {
  write_options(default_options(), options, struct_size);
}

void saga_batch_call_init_sized(saga_batch_call_t* call, uint32_t struct_size) {
  write_options(default_call(), call, struct_size);
}

void saga_batch_arrays_init_sized(saga_batch_arrays_t* arrays, uint32_t struct_size) {
  write_options(saga_batch_arrays_t{}, arrays, struct_size);
}

saga_status_t saga_batch_former_create(saga_page_table_t* table, const saga_batch_former_options_t* options,
                                       saga_batch_former_t** former) {
  saga_batch_former_options_t given = default_options();
  if (table == nullptr || former == nullptr || !read_options(options, &given)) return SAGA_ERR_INVALID_ARGUMENT;
  if (table->attached) return SAGA_ERR_WRONG_STATE;
  if (!options_valid(given, table->table)) return SAGA_ERR_INVALID_ARGUMENT;
  const BatchFormerOptions made = {.max_calls = given.max_calls,
                                   .max_sequences = given.max_sequences,
                                   .token_budget = given.token_budget,
                                   .max_prefill_chunk = given.max_prefill_chunk,
                                   .max_copies = given.max_copies,
                                   .order = static_cast<BatchOrder>(given.order),
                                   .preemption = static_cast<Preemption>(given.preemption),
                                   .slowest_hit = static_cast<Tier>(given.slowest_hit),
                                   .session_affinity = given.session_affinity == 1,
                                   .hit_after_completion = given.hit_after_completion == 1,
                                   .starvation_limit = given.starvation_limit};
  return guarded([&] {
    *former = new saga_batch_former_t(table, made);
    return SAGA_OK;
  });
}

void saga_batch_former_destroy(saga_batch_former_t* former) {
  if (former == nullptr) return;
  saga_page_table_t* const table = former->table;
  delete former;
  table->attached = false;
  let_go(table);
}

saga_status_t saga_batch_former_submit(saga_batch_former_t* former, uint64_t now, const saga_batch_call_t* call,
                                       const uint64_t* hashes, size_t count, uint32_t* id) {
  saga_batch_call_t given = default_call();
  if (former == nullptr || id == nullptr || !is_array(hashes, count) || !read_options(call, &given) ||
      !former->former.fits(given.prompt_tokens, given.max_new_tokens) ||
      count > given.prompt_tokens / former->former.pages().block_size() ||
      !urgency_valid(former->former, given.urgency) ||
      static_cast<std::uint32_t>(given.prompt_kind) > SAGA_PROMPT_USER || given.reserved != 0) {
    return SAGA_ERR_INVALID_ARGUMENT;
  }
  if (now < former->former.now()) return SAGA_ERR_TIME_REVERSED;
  return to_c(former->former.submit(now,
                                    {.workflow = given.workflow,
                                     .prompt_tokens = given.prompt_tokens,
                                     .max_new_tokens = given.max_new_tokens,
                                     .priority = given.priority,
                                     .urgency = given.urgency,
                                     .thread = given.thread,
                                     .prompt_kind = static_cast<PromptKind>(given.prompt_kind)},
                                    to_span(hashes, count), *id));
}

saga_status_t saga_batch_former_add_hashes(saga_batch_former_t* former, uint32_t call, const uint64_t* hashes,
                                           size_t count) {
  if (former == nullptr || !is_array(hashes, count)) return SAGA_ERR_INVALID_ARGUMENT;
  if (!former->former.is_open(call)) return SAGA_ERR_NOT_FOUND;
  if (count > former->former.hash_limit(call) - former->former.hash_count(call)) return SAGA_ERR_INVALID_ARGUMENT;
  former->former.add_hashes(call, to_span(hashes, count));
  return SAGA_OK;
}

saga_status_t saga_batch_former_set_priority(saga_batch_former_t* former, uint32_t call, int32_t priority) {
  if (former == nullptr) return SAGA_ERR_INVALID_ARGUMENT;
  if (!former->former.is_open(call)) return SAGA_ERR_NOT_FOUND;
  former->former.set_priority(call, priority);
  return SAGA_OK;
}

saga_status_t saga_batch_former_set_urgency(saga_batch_former_t* former, uint64_t workflow, double urgency,
                                            uint32_t* count) {
  if (former == nullptr || count == nullptr || !urgency_valid(former->former, urgency))
    return SAGA_ERR_INVALID_ARGUMENT;
  *count = former->former.set_urgency(workflow, urgency);
  return SAGA_OK;
}

saga_status_t saga_batch_former_set_outcome(saga_batch_former_t* former, uint32_t call,
                                            const saga_call_outcome_t* outcome) {
  if (former == nullptr || outcome == nullptr || !outcome_valid(*outcome)) return SAGA_ERR_INVALID_ARGUMENT;
  if (!former->former.is_open(call)) return SAGA_ERR_NOT_FOUND;
  former->former.set_outcome(call, to_core(*outcome));
  return SAGA_OK;
}

saga_status_t saga_batch_former_cancel(saga_batch_former_t* former, uint32_t call) {
  if (former == nullptr) return SAGA_ERR_INVALID_ARGUMENT;
  if (!former->former.is_open(call)) return SAGA_ERR_NOT_FOUND;
  former->former.cancel(call);
  return SAGA_OK;
}

saga_status_t saga_batch_former_cancel_workflow(saga_batch_former_t* former, uint64_t workflow, uint32_t* count) {
  if (former == nullptr || count == nullptr) return SAGA_ERR_INVALID_ARGUMENT;
  *count = former->former.cancel_workflow(workflow);
  return SAGA_OK;
}

saga_status_t saga_batch_former_call_status(const saga_batch_former_t* former, uint32_t call,
                                            saga_call_status_t* status) {
  if (former == nullptr || status == nullptr) return SAGA_ERR_INVALID_ARGUMENT;
  if (!former->former.is_open(call)) return SAGA_ERR_NOT_FOUND;
  const BatchCallStatus known = former->former.call_status(call);
  status->state = static_cast<saga_call_state_t>(known.state);
  status->known_tokens = known.known_tokens;
  status->computed_tokens = known.computed_tokens;
  status->hash_count = former->former.hash_count(call);
  status->hit_tokens = known.hit_tokens;
  status->preemptions = known.preemptions;
  return SAGA_OK;
}

saga_status_t saga_batch_former_form(saga_batch_former_t* former, uint64_t now, const saga_batch_arrays_t* arrays,
                                     saga_batch_t* batch) {
  saga_batch_arrays_t given{};
  if (former == nullptr || batch == nullptr || !read_options(arrays, &given) || !arrays_valid(given)) {
    return SAGA_ERR_INVALID_ARGUMENT;
  }
  const std::size_t calls = given.call_capacity;
  const BatchArrays views = {
      .calls = to_span(given.calls, calls),
      .rows = to_span(given.rows, calls),
      .first_tokens = to_span(given.first_tokens, calls),
      .token_counts = to_span(given.token_counts, calls),
      .sequence_lengths = to_span(given.sequence_lengths, calls),
      .query_starts = to_span(given.query_starts, calls + 1),
      .slot_mapping = to_span(given.slot_mapping, given.token_capacity),
      .block_tables = to_span(given.block_tables, std::size_t{given.block_table_rows} * given.block_table_width),
      .block_table_stride = given.block_table_width,
      .updates = to_span(reinterpret_cast<BlockTableUpdate*>(given.updates), calls),
      .copies = former->copies,
      .preempted = to_span(given.preempted, calls)};
  if (given.copy_capacity < former->copies.size() || !former->former.arrays_fit(views))
    return SAGA_ERR_INVALID_ARGUMENT;
  if (former->former.in_flight()) return SAGA_ERR_WRONG_STATE;
  if (now < former->former.now()) return SAGA_ERR_TIME_REVERSED;
  const BatchSummary formed = former->former.form(now, views);
  for (std::uint32_t i = 0; i < formed.copies; ++i) {
    const BlockCopy& copy = former->copies[i];
    given.copies[i] = {static_cast<std::uint32_t>(copy.source.tier), copy.source.block,
                       static_cast<std::uint32_t>(copy.target.tier), copy.target.block};
  }
  *batch = {formed.calls,   formed.decode_calls, formed.tokens,   formed.admitted,
            formed.updates, formed.copies,       formed.preempted};
  return SAGA_OK;
}

saga_status_t saga_batch_former_complete(saga_batch_former_t* former, const uint32_t* sampled, const uint8_t* finished,
                                         size_t count, uint32_t* ended) {
  if (former == nullptr || ended == nullptr || !is_array(sampled, count) || !is_array(finished, count)) {
    return SAGA_ERR_INVALID_ARGUMENT;
  }
  if (!former->former.in_flight()) return SAGA_ERR_WRONG_STATE;
  if (!former->former.completion_valid(to_span(sampled, count), to_span(finished, count))) {
    return SAGA_ERR_INVALID_ARGUMENT;
  }
  *ended = former->former.complete(to_span(sampled, count), to_span(finished, count));
  return SAGA_OK;
}

saga_status_t saga_batch_former_stats(const saga_batch_former_t* former, saga_batch_former_stats_t* stats) {
  if (former == nullptr || stats == nullptr) return SAGA_ERR_INVALID_ARGUMENT;
  const BatchFormerStats known = former->former.stats();
  stats->waiting_calls = known.waiting_calls;
  stats->swapped_calls = known.swapped_calls;
  stats->running_calls = known.running_calls;
  stats->in_flight = former->former.in_flight() ? 1 : 0;
  stats->submitted_total = known.submitted_total;
  stats->finished_total = known.finished_total;
  stats->cancelled_total = known.cancelled_total;
  stats->steps_total = known.steps_total;
  stats->decode_tokens_total = known.decode_tokens_total;
  stats->prefill_tokens_total = known.prefill_tokens_total;
  stats->prompt_tokens_total = known.prompt_tokens_total;
  stats->hit_tokens_total = known.hit_tokens_total;
  stats->preempted_total = known.preempted_total;
  stats->swapped_out_total = known.swapped_out_total;
  stats->recomputed_tokens_total = known.recomputed_tokens_total;
  stats->held_total = known.held_total;
  stats->memory_bytes = known.memory_bytes + former->copies.capacity() * sizeof(BlockCopy);
  return SAGA_OK;
}

saga_status_t saga_batch_former_verify(const saga_batch_former_t* former, uint32_t* intact) {
  if (former == nullptr || intact == nullptr) return SAGA_ERR_INVALID_ARGUMENT;
  return guarded([&] {
    *intact = former->former.verify() && former->table->table.verify() ? 1 : 0;
    return SAGA_OK;
  });
}

saga_status_t saga_batch_former_digest(const saga_batch_former_t* former, uint64_t* digest) {
  if (former == nullptr || digest == nullptr) return SAGA_ERR_INVALID_ARGUMENT;
  *digest = former->former.digest();
  return SAGA_OK;
}

}  // extern "C"
