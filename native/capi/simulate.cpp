// Workloads and simulations of the C interface.
#include <atomic>
#include <memory>

#include "../core/sim/cache_replay.hpp"
#include "../core/sim/workload.hpp"
#include "check.hpp"
#include "workload_check.hpp"

using namespace saga;
using namespace saga::capi;

static_assert(SAGA_EVICTION_LRU == static_cast<int>(PolicyKind::kLru) &&
              SAGA_EVICTION_LRU_PREFIX == static_cast<int>(PolicyKind::kLruPrefix) &&
              SAGA_EVICTION_WA_LRU == static_cast<int>(PolicyKind::kWaLru) &&
              SAGA_EVICTION_TTL == static_cast<int>(PolicyKind::kTtl) &&
              SAGA_EVICTION_BELADY == static_cast<int>(PolicyKind::kBelady));
static_assert(SAGA_CACHE_ATOMIC == static_cast<int>(CacheModel::kAtomic) &&
              SAGA_CACHE_PINNED == static_cast<int>(CacheModel::kPinned));

struct saga_workload_t {
  std::shared_ptr<const Workload> workload;
};

struct saga_cache_replay_t {
  std::shared_ptr<const Workload> workload;
  PageTree tree;
  CacheSchedule schedule;
};

namespace {

// The core counts in std::atomic; to a C caller it is a plain 64-bit integer.
std::atomic<std::uint64_t>* as_atomic(std::uint64_t* progress) {
  static_assert(sizeof(std::atomic<std::uint64_t>) == sizeof(std::uint64_t));
  static_assert(std::atomic<std::uint64_t>::is_always_lock_free);
  return reinterpret_cast<std::atomic<std::uint64_t>*>(progress);
}

bool page_size_fits(std::uint32_t page_tokens, std::uint32_t block_tokens) {
  return in_range(page_tokens, 1, 1u << 20) && (page_tokens % block_tokens == 0 || block_tokens % page_tokens == 0);
}

}  // namespace

extern "C" {

saga_status_t saga_workload_create(const saga_workload_columns_t* columns, saga_workload_t** workload) {
  saga_workload_columns_t given{};
  if (workload == nullptr || !read_options(columns, &given) || !workload_columns_valid(given)) {
    return SAGA_ERR_INVALID_ARGUMENT;
  }
  return guarded([&] {
    auto copy = std::make_shared<Workload>(copy_workload(given));
    *workload = new (std::nothrow) saga_workload_t{std::move(copy)};
    return *workload == nullptr ? SAGA_ERR_OUT_OF_MEMORY : SAGA_OK;
  });
}

void saga_workload_destroy(saga_workload_t* workload) { delete workload; }

saga_status_t saga_cache_replay_create(const saga_workload_t* workload, uint32_t page_tokens, const uint32_t* call,
                                       const uint64_t* start, const uint64_t* end, size_t count,
                                       saga_cache_replay_t** replay) {
  if (workload == nullptr || replay == nullptr || !is_array(call, count) || !is_array(start, count) ||
      !is_array(end, count) || count > workload->workload->calls() ||
      !page_size_fits(page_tokens, workload->workload->block_tokens)) {
    return SAGA_ERR_INVALID_ARGUMENT;
  }
  for (std::size_t i = 0; i < count; ++i) {
    if (call[i] >= workload->workload->calls() || end[i] < start[i] || (i > 0 && start[i] < start[i - 1])) {
      return SAGA_ERR_INVALID_ARGUMENT;
    }
  }
  return guarded([&] {
    CacheSchedule schedule{{call, call + count}, {start, start + count}, {end, end + count}};
    *replay = new (std::nothrow) saga_cache_replay_t{
        workload->workload, PageTree::for_cache(*workload->workload, page_tokens), std::move(schedule)};
    return *replay == nullptr ? SAGA_ERR_OUT_OF_MEMORY : SAGA_OK;
  });
}

void saga_cache_replay_destroy(saga_cache_replay_t* replay) { delete replay; }

saga_status_t saga_cache_replay_distinct_pages(const saga_cache_replay_t* replay, uint64_t* pages) {
  if (replay == nullptr || pages == nullptr) return SAGA_ERR_INVALID_ARGUMENT;
  *pages = replay->tree.distinct_pages();
  return SAGA_OK;
}

void saga_cache_options_init(saga_cache_options_t* options) {
  if (options == nullptr) return;
  *options = saga_cache_options_t{};
  options->struct_size = sizeof *options;
  options->policy = SAGA_EVICTION_LRU;
  options->model = SAGA_CACHE_PINNED;
  options->capacity_pages = 1;
  options->request_limit = UINT64_MAX;
}

saga_status_t saga_cache_replay_run(const saga_cache_replay_t* replay, const saga_cache_options_t* options,
                                    saga_cache_result_t* result, uint64_t* progress) {
  saga_cache_options_t given;
  saga_cache_options_init(&given);
  if (replay == nullptr || result == nullptr || !read_options(options, &given) ||
      given.policy > SAGA_EVICTION_BELADY || given.model > SAGA_CACHE_PINNED || given.capacity_pages == 0 ||
      given.infer_threads > 1) {
    return SAGA_ERR_INVALID_ARGUMENT;
  }
  CacheReplayOptions run;
  run.policy = static_cast<PolicyKind>(given.policy);
  run.model = static_cast<CacheModel>(given.model);
  run.capacity_pages = given.capacity_pages;
  run.request_limit = given.request_limit < kNone ? static_cast<std::uint32_t>(given.request_limit) : kNone;
  run.infer_threads = given.infer_threads != 0;
  run.progress = as_atomic(progress);
  run.now_ns = given.nanoseconds;
  return guarded([&] {
    const CacheReplayResult replayed = replay_cache(*replay->workload, replay->tree, replay->schedule, run);
    result->requests = replayed.requests;
    result->requested_pages = replayed.requested_pages;
    result->missed_pages = replayed.missed_pages;
    result->evicted_pages = replayed.evicted_pages;
    result->requested_cost = replayed.requested_cost;
    result->missed_cost = replayed.missed_cost;
    result->eviction_nanoseconds = replayed.cut_ns;
    result->overflows = replayed.overflows;
    return SAGA_OK;
  });
}

}  // extern "C"
