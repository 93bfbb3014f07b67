"""Leases: budget, values, ends. Without vLLM."""

from saga_vllm.leases import Leases


class Holder:
    def __init__(self):
        self.held = {}

    def shield(self, ids):
        for block in ids:
            self.held[block] = self.held.get(block, 0) + 1

    def unshield(self, ids):
        for block in ids:
            self.held[block] -= 1
            if not self.held[block]:
                del self.held[block]


class Case:
    def __init__(self, budget):
        self.now = 100.0
        self.holder = Holder()
        self.leases = Leases(self.holder, budget, lambda: self.now)
        self.ends = []

    def retain(self, claim, blocks, ttl=10.0, value=0.5):
        done = self.leases.retain(claim, blocks, ttl, value, lambda status, reason: self.ends.append((claim, status, reason)))
        assert self.leases.verify() and self.holder.held == self.leases.holders
        return done


def test_a_lease_that_expires():
    case = Case(10)
    assert case.retain("a", [1, 2, 3])
    case.now += 9.9
    case.leases.expire()
    assert case.ends == [] and case.holder.held == {1: 1, 2: 1, 3: 1}
    case.now += 0.2
    case.leases.expire()
    assert case.ends == [("a", "expired", None)] and case.holder.held == {}


def test_release_and_replacement():
    case = Case(10)
    case.retain("a", [1, 2])
    case.retain("a", [2, 3])
    assert case.ends == [("a", "released", None)] and case.holder.held == {2: 1, 3: 1}
    assert case.leases.release("a") and not case.leases.release("a")
    assert case.holder.held == {}


def test_the_budget_goes_to_what_is_worth_more():
    case = Case(5)
    assert case.retain("low", [1, 2], value=0.3)
    assert case.retain("high", [3, 4], value=0.9)
    assert not case.retain("poor", [5, 6], value=0.3)  # not more than `low`
    assert case.ends == []
    assert case.retain("good", [5, 6], value=0.5)
    assert case.ends == [("low", "revoked", "budget")]
    assert not case.retain("big", [10, 11, 12, 13, 14, 15], value=1)  # more than there is
    assert case.ends == [("low", "revoked", "budget")]
    assert set(case.leases.leases) == {"high", "good"}


def test_values_decay():
    case = Case(4)
    case.retain("old", [1, 2], ttl=10, value=0.9)
    case.now += 8  # worth 0.18 now
    case.retain("new", [3, 4], ttl=10, value=0.3)
    assert case.leases.revoke_least()
    assert case.ends == [("old", "revoked", "memory")]
    assert case.leases.revoke_least() and not case.leases.revoke_least()


def test_shared_blocks_count_once():
    case = Case(4)
    assert case.retain("a", [1, 2, 3])
    assert case.retain("b", [1, 2, 4])
    assert case.holder.held == {1: 2, 2: 2, 3: 1, 4: 1}
    case.leases.release("a")
    assert case.holder.held == {1: 1, 2: 1, 4: 1}


def test_a_block_that_is_lost_ends_what_lies_behind_it():
    case = Case(8)
    case.retain("a", [1, 2, 3, 4])
    case.retain("b", [1, 2, 5])
    case.leases.lost(3)
    assert case.ends == [] and case.leases.leases["a"].blocks == [1, 2] and case.holder.held == {1: 2, 2: 2, 5: 1}
    case.leases.lost(1)
    assert sorted(case.ends) == [("a", "revoked", "reused"), ("b", "revoked", "reused")] and case.holder.held == {}
    assert case.leases.verify()
