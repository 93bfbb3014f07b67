#include "eviction_policy.hpp"

#include "belady_policy.hpp"
#include "branch_policy.hpp"
#include "recency_policy.hpp"
#include "saga_policy.hpp"
#include "steps_policy.hpp"

namespace saga {

std::unique_ptr<EvictionPolicy> make_eviction_policy(PolicyKind kind, const ResidentSet& residents,
                                                     const FutureRequests& future, ReuseStatistics* shared) {
  switch (kind) {
    case PolicyKind::kLru:
      return std::make_unique<RecencyPolicy>(residents);
    case PolicyKind::kLruPrefix:
      return std::make_unique<PrefixRecencyPolicy>(residents);
    case PolicyKind::kWaLru:
      return std::make_unique<WorkflowAwarePolicy>(residents);
    case PolicyKind::kTtl:
      return std::make_unique<TimeToLivePolicy>(residents);
    case PolicyKind::kBelady:
      return std::make_unique<BeladyPolicy>(residents, future);
    case PolicyKind::kSagaPaper:
      return std::make_unique<SagaPaperPolicy>(residents);
    case PolicyKind::kSaga:
      return std::make_unique<SagaPolicy>(residents, shared);
    case PolicyKind::kStepsToExecution:
      return std::make_unique<StepsPolicy>(residents);
  }
  return nullptr;
}

}  // namespace saga
