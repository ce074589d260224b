"""The share of the time that measuring may take."""

from __future__ import annotations

import math

import pytest

from geomonitor.errors import InputError
from geomonitor.measure.budget import Budget


def measured(budget: Budget, occasions: int, cost: float, period: float) -> list[int]:
    """Occasions that pass, where each is ``period`` seconds of training after the one before."""
    passed, since = [], 0.0
    budget.start()
    for occasion in range(occasions):
        since += period
        if budget.due():
            passed.append(occasion)
            budget.spend(cost, since)
            since = 0.0
    return passed


@pytest.mark.parametrize(
    ("cost", "period", "every"), [(0.01, 10, 1), (0.2, 10, 1), (0.21, 10, 2), (0.5, 10, 3), (0.2999, 0.1, 150)]
)
def test_no_more_than_the_share_is_spent_and_no_less_often_than_needed(cost, period, every):
    passed = measured(Budget(0.02), 10 * every, cost, period)
    assert passed == list(range(0, 10 * every, every))
    assert cost <= 0.02 * every * period * (1 + 1e-12)
    assert every == 1 or cost > 0.02 * (every - 1) * period


def test_without_a_limit_every_occasion_passes():
    assert measured(Budget(), 5, cost=9, period=1) == [0, 1, 2, 3, 4]


def test_a_slow_first_measurement_is_forgotten():
    budget = Budget(0.02)
    budget.start()
    budget.due()
    budget.spend(10, 10)  # a first one that compiled something
    assert budget.every == 50
    assert measured(budget, 200, cost=0.1, period=10)[-3:] == [197, 198, 199]


def test_unknown_training_time_changes_nothing():
    budget = Budget(0.02)
    assert math.isnan(budget.training_seconds)
    assert budget.due()
    budget.spend(5, math.nan)
    assert budget.every == 1
    assert budget.training_seconds >= 0


def test_a_restored_budget_passes_the_same_occasions():
    whole, first, second = Budget(0.02), Budget(0.02), Budget(0.02)
    expected = measured(whole, 12, cost=0.7, period=10)
    begun = measured(first, 6, cost=0.7, period=10)
    second.load_state_dict(first.state_dict())
    resumed = measured(second, 6, cost=0.7, period=10)
    assert begun + [occasion + 6 for occasion in resumed] == expected == [0, 4, 8]
    free = Budget()
    free.load_state_dict(first.state_dict())
    assert free.due()


@pytest.mark.parametrize("share", [0, -0.1, math.nan])
def test_a_share_that_makes_no_sense_is_refused(share):
    with pytest.raises(InputError, match="max_overhead"):
        Budget(share)
