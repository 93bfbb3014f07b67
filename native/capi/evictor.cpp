// Evictors of the C interface: checks, then native/core/evict/block_evictor.hpp.
#include <algorithm>
#include <vector>

#include "../core/evict/block_evictor.hpp"
#include "check.hpp"
#include "evictor_check.hpp"

using namespace saga;
using namespace saga::capi;

struct saga_evictor_t {
  explicit saga_evictor_t(const BlockEvictorOptions& options) : evictor(options), marked(options.block_count, false) {}
  BlockEvictor evictor;
  std::vector<bool> marked;  // working room of the checks, all false between calls
};

namespace {

constexpr std::uint32_t kMostBlocks = 1u << 26;
constexpr std::uint32_t kMostGhosts = 1u << 27;

saga_evictor_options_t default_options() {
  saga_evictor_options_t options{};
  options.block_tokens = 16;
  options.max_calls = 1024;
  options.ghosts = SAGA_NONE;
  options.policy = SAGA_EVICTOR_SAGA;
  return options;
}

bool blocks_valid(const saga_evictor_t* evictor, const uint32_t* blocks, size_t count) {
  return evictor != nullptr && is_array(blocks, count) &&
         std::all_of(blocks, blocks + count, [&](uint32_t block) { return block < evictor->evictor.block_count(); });
}

// Whether all of them are free (or in use), and none is given twice.
bool state_valid(saga_evictor_t* evictor, const uint32_t* blocks, size_t count, bool free) {
  size_t good = 0;
  while (good < count && evictor->evictor.is_free(blocks[good]) == free && !evictor->marked[blocks[good]]) {
    evictor->marked[blocks[good++]] = true;
  }
  for (size_t i = 0; i < good; ++i) evictor->marked[blocks[i]] = false;
  return good == count;
}

}  // namespace

extern "C" {

void saga_evictor_options_init_sized(saga_evictor_options_t* options, uint32_t struct_size) {
  write_options(default_options(), options, struct_size);
}

saga_status_t saga_evictor_create(const saga_evictor_options_t* options, saga_evictor_t** evictor) {
  saga_evictor_options_t given = default_options();
  if (evictor == nullptr || !read_options(options, &given) || !in_range(given.block_count, 1, kMostBlocks) ||
      !in_range(given.block_tokens, 1, 4096) || !in_range(given.max_calls, 1, 1u << 20) ||
      (given.ghosts > kMostGhosts && given.ghosts != SAGA_NONE) || given.policy > SAGA_EVICTOR_SAGA) {
    return SAGA_ERR_INVALID_ARGUMENT;
  }
  return guarded([&] {
    BlockEvictorOptions made;
    made.block_count = given.block_count;
    made.block_tokens = given.block_tokens;
    made.max_calls = given.max_calls;
    made.ghosts = given.ghosts;
    made.policy = given.policy == SAGA_EVICTOR_LRU ? PolicyKind::kLru : PolicyKind::kSaga;
    made.regret_calls = 4096;
    *evictor = new saga_evictor_t(made);
    return SAGA_OK;
  });
}

void saga_evictor_destroy(saga_evictor_t* evictor) { delete evictor; }

saga_status_t saga_evictor_start(saga_evictor_t* evictor, uint32_t call, uint64_t thread, const uint64_t* hashes,
                                 size_t count, saga_prompt_kind_t kind, uint64_t now, uint32_t* resident) {
  if (evictor == nullptr || resident == nullptr || !is_array(hashes, count) || count >= kNone ||
      call >= evictor->evictor.max_calls() || static_cast<std::uint32_t>(kind) > SAGA_PROMPT_USER) {
    return SAGA_ERR_INVALID_ARGUMENT;
  }
  if (now < evictor->evictor.now()) return SAGA_ERR_TIME_REVERSED;
  if (evictor->evictor.is_open(call) && !evictor->evictor.is_preempted(call)) return SAGA_ERR_WRONG_STATE;
  return guarded([&] {
    *resident = evictor->evictor.start(call, thread, to_span(hashes, count), static_cast<PromptKind>(kind), now);
    return SAGA_OK;
  });
}

saga_status_t saga_evictor_end(saga_evictor_t* evictor, const saga_evictor_end_t* ends, size_t count, uint64_t now) {
  if (evictor == nullptr || !is_array(ends, count)) return SAGA_ERR_INVALID_ARGUMENT;
  for (size_t i = 0; i < count; ++i) {
    const bool block_good = ends[i].last_block == SAGA_NONE || ends[i].last_block < evictor->evictor.block_count();
    if (ends[i].call >= evictor->evictor.max_calls() || !block_good || !outcome_valid(ends[i].outcome)) {
      return SAGA_ERR_INVALID_ARGUMENT;
    }
    if (!evictor->evictor.is_open(ends[i].call)) return SAGA_ERR_NOT_FOUND;
    for (size_t j = 0; j < i; ++j) {
      if (ends[j].call == ends[i].call) return SAGA_ERR_NOT_FOUND;
    }
  }
  if (now < evictor->evictor.now()) return SAGA_ERR_TIME_REVERSED;
  return guarded([&] {
    for (size_t i = 0; i < count; ++i) {
      evictor->evictor.end(ends[i].call, to_core(ends[i].outcome), ends[i].last_block, now);
    }
    return SAGA_OK;
  });
}

saga_status_t saga_evictor_preempt(saga_evictor_t* evictor, const uint32_t* calls, size_t count, uint64_t now) {
  if (evictor == nullptr || !is_array(calls, count)) return SAGA_ERR_INVALID_ARGUMENT;
  for (size_t i = 0; i < count; ++i) {
    if (calls[i] >= evictor->evictor.max_calls()) return SAGA_ERR_INVALID_ARGUMENT;
    if (!evictor->evictor.is_open(calls[i])) return SAGA_ERR_NOT_FOUND;
    if (evictor->evictor.is_preempted(calls[i])) return SAGA_ERR_WRONG_STATE;
    if (std::find(calls, calls + i, calls[i]) != calls + i) return SAGA_ERR_WRONG_STATE;
  }
  if (now < evictor->evictor.now()) return SAGA_ERR_TIME_REVERSED;
  for (size_t i = 0; i < count; ++i) evictor->evictor.preempt(calls[i], now);
  return SAGA_OK;
}

saga_status_t saga_evictor_told(saga_evictor_t* evictor, uint64_t thread, const saga_call_outcome_t* outcome,
                                uint64_t now) {
  if (evictor == nullptr || outcome == nullptr || !outcome_valid(*outcome)) return SAGA_ERR_INVALID_ARGUMENT;
  if (now < evictor->evictor.now()) return SAGA_ERR_TIME_REVERSED;
  return guarded([&] { return evictor->evictor.told(thread, to_core(*outcome), now) ? SAGA_OK : SAGA_ERR_NOT_FOUND; });
}

saga_status_t saga_evictor_threads_left(saga_evictor_t* evictor, const uint64_t* threads, size_t count, uint64_t now) {
  if (evictor == nullptr || !is_array(threads, count)) return SAGA_ERR_INVALID_ARGUMENT;
  if (now < evictor->evictor.now()) return SAGA_ERR_TIME_REVERSED;
  for (size_t i = 0; i < count; ++i) evictor->evictor.thread_left(threads[i], now);
  return SAGA_OK;
}

saga_status_t saga_evictor_store(saga_evictor_t* evictor, const uint64_t* parent, const uint64_t* hashes,
                                 const uint32_t* blocks, size_t count) {
  if (!blocks_valid(evictor, blocks, count) || !is_array(hashes, count)) return SAGA_ERR_INVALID_ARGUMENT;
  return guarded([&] {
    evictor->evictor.store(parent != nullptr, parent != nullptr ? *parent : 0, to_span(hashes, count),
                           to_span(blocks, count));
    return SAGA_OK;
  });
}

saga_status_t saga_evictor_drop(saga_evictor_t* evictor, const uint32_t* blocks, size_t count) {
  if (!blocks_valid(evictor, blocks, count)) return SAGA_ERR_INVALID_ARGUMENT;
  for (size_t i = 0; i < count; ++i) evictor->evictor.drop(blocks[i]);
  return SAGA_OK;
}

saga_status_t saga_evictor_pin(saga_evictor_t* evictor, const uint32_t* blocks, size_t count) {
  if (!blocks_valid(evictor, blocks, count)) return SAGA_ERR_INVALID_ARGUMENT;
  if (!state_valid(evictor, blocks, count, true)) return SAGA_ERR_WRONG_STATE;
  evictor->evictor.pin(to_span(blocks, count));
  return SAGA_OK;
}

saga_status_t saga_evictor_unpin(saga_evictor_t* evictor, const uint32_t* blocks, size_t count) {
  if (!blocks_valid(evictor, blocks, count)) return SAGA_ERR_INVALID_ARGUMENT;
  if (!state_valid(evictor, blocks, count, false)) return SAGA_ERR_WRONG_STATE;
  evictor->evictor.unpin(to_span(blocks, count));
  return SAGA_OK;
}

saga_status_t saga_evictor_prefer(saga_evictor_t* evictor, const uint32_t* blocks, size_t count) {
  if (!blocks_valid(evictor, blocks, count)) return SAGA_ERR_INVALID_ARGUMENT;
  if (!state_valid(evictor, blocks, count, true)) return SAGA_ERR_WRONG_STATE;
  for (size_t i = count; i-- > 0;) evictor->evictor.prefer(blocks[i]);
  return SAGA_OK;
}

saga_status_t saga_evictor_take(saga_evictor_t* evictor, uint32_t* blocks, size_t count, uint64_t now) {
  if (evictor == nullptr || !is_array(blocks, count)) return SAGA_ERR_INVALID_ARGUMENT;
  if (now < evictor->evictor.now()) return SAGA_ERR_TIME_REVERSED;
  if (count > evictor->evictor.free_count()) return SAGA_ERR_OUT_OF_BLOCKS;
  return guarded([&] {
    evictor->evictor.take(to_span(blocks, count), now);
    return SAGA_OK;
  });
}

saga_status_t saga_evictor_clear(saga_evictor_t* evictor) {
  if (evictor == nullptr) return SAGA_ERR_INVALID_ARGUMENT;
  evictor->evictor.clear();
  return SAGA_OK;
}

saga_status_t saga_evictor_stats(const saga_evictor_t* evictor, saga_evictor_stats_t* stats) {
  if (evictor == nullptr || stats == nullptr) return SAGA_ERR_INVALID_ARGUMENT;
  *stats = to_c(evictor->evictor.stats());
  return SAGA_OK;
}

saga_status_t saga_evictor_regret(const saga_evictor_t* evictor, saga_regret_t* regret) {
  if (evictor == nullptr || regret == nullptr) return SAGA_ERR_INVALID_ARGUMENT;
  return guarded([&] {
    const RegretMeter::Reading reading = evictor->evictor.regret();
    *regret = {reading.calls, reading.missed_pages, reading.optimum_missed};
    return SAGA_OK;
  });
}

saga_status_t saga_evictor_verify(const saga_evictor_t* evictor, uint32_t* intact) {
  if (evictor == nullptr || intact == nullptr) return SAGA_ERR_INVALID_ARGUMENT;
  return guarded([&] {
    *intact = evictor->evictor.verify() ? 1 : 0;
    return SAGA_OK;
  });
}

}  // extern "C"
