"""The share of the time that measuring may take."""

from __future__ import annotations

import math

import pytest

from geomonitor.errors import InputError
from geomonitor.measure.budget import FREE_SECONDS, Budget


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
    ("cost", "period", "every"), [(61, 9e4, 1), (200, 1e4, 1), (210, 1e4, 2), (500, 1e4, 3), (299.9, 100, 150)]
)
def test_no_more_than_the_share_is_spent_and_no_less_often_than_needed(cost, period, every):
    passed = measured(Budget(0.02), 10 * every, cost, period)
    assert passed == list(range(0, 10 * every, every))
    assert cost <= 0.02 * every * period * (1 + 1e-12)
    assert every == 1 or cost > 0.02 * (every - 1) * period


@pytest.mark.parametrize("cost", [0.25, 7.0, 59.0])
def test_the_first_minute_of_measuring_is_free(cost):
    passed = measured(Budget(0.02), 700, cost, period=0.01)
    free = int(FREE_SECONDS / cost) + 1  # the one that goes beyond the minute was not yet known to
    assert passed == list(range(free))


def test_what_is_spent_goes_on_with_a_resumed_run():
    first, second = Budget(0.02), Budget(0.02)
    measured(first, 2, cost=25, period=1)
    second.load_state_dict(first.state_dict())
    assert measured(second, 9, cost=25, period=1) == [0]


def test_without_a_limit_every_occasion_passes():
    assert measured(Budget(), 5, cost=9, period=1) == [0, 1, 2, 3, 4]


def test_a_slow_first_measurement_is_forgotten():
    budget = Budget(0.02)
    budget.start()
    budget.due()
    budget.spend(100, 100)  # a first one that compiled something
    assert budget.every == 50
    assert measured(budget, 200, cost=1, period=100)[-3:] == [197, 198, 199]


def test_a_measurement_that_was_not_scheduled_sets_no_pace():
    budget = Budget(0.02)
    budget.start()
    budget.spend(100, 0.01)  # before the first step, as for pretrained weights
    assert budget.every == 1
    assert measured(budget, 9, cost=100, period=2500) == [0, 2, 4, 6, 8]
    budget.spend(100, 50)  # once more, to confirm
    assert budget.every == 2


def test_unknown_training_time_changes_nothing():
    budget = Budget(0.02)
    assert math.isnan(budget.training_seconds)
    assert budget.due()
    budget.spend(5, math.nan)
    assert budget.every == 1
    assert budget.training_seconds >= 0


def test_a_restored_budget_passes_the_same_occasions():
    whole, first, second = Budget(0.02), Budget(0.02), Budget(0.02)
    expected = measured(whole, 12, cost=70, period=1000)
    begun = measured(first, 6, cost=70, period=1000)
    second.load_state_dict(first.state_dict())
    resumed = measured(second, 6, cost=70, period=1000)
    assert begun + [occasion + 6 for occasion in resumed] == expected == [0, 4, 8]
    free = Budget()
    free.load_state_dict(first.state_dict())
    assert free.due()


@pytest.mark.parametrize("share", [0, -0.1, math.nan])
def test_a_share_that_makes_no_sense_is_refused(share):
    with pytest.raises(InputError, match="max_overhead"):
        Budget(share)
