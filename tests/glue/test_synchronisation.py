"""How often the batched solver asks the device: once a round, and once a pass that drops columns."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from geomonitor.glue.draws import draw_directions
from geomonitor.glue.nnls import block_pivoting
from geomonitor.glue.nnls.gram_problem import GramProblem
from tests.glue.clouds import relu_network
from tests.glue.test_anchors import unit_problem

ASKING = ("_local_scalar_dense", "nonzero", "bincount", "masked_select", "equal", "is_nonzero", "_unique2")
"""Operations whose result, or its shape, has to come back from the device."""


class Questions(TorchDispatchMode):
    """Counts what would make a GPU wait for the processor; ``tolist`` is counted apart, for it is no operation."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function.overloadpacket.__name__
        by_mask = name in ("index", "index_put", "index_put_") and any(
            place is not None and place.dtype in (torch.bool, torch.uint8) for place in args[1]
        )
        self.asked[name] += name in ASKING or by_mask
        return function(*args, **(kwargs or {}))


def pairs_problem(samples: int) -> GramProblem:
    """Three pairs of classes, a group each."""
    problems = [unit_problem(*relu_network(2, 12, 30, 60, seed=seed), samples)[0] for seed in range(3)]
    return GramProblem(
        torch.cat([p.gram for p in problems]),
        torch.cat([p.products for p in problems]),
        torch.cat([p.signs for p in problems]),
        torch.arange(3).repeat_interleave(samples),
        problems[0].segment,
        largest_group=samples,
    )


@pytest.mark.parametrize("pairwise", [False, True])
def test_one_question_a_round_and_one_a_pass(monkeypatch, pairwise):
    problem = pairs_problem(30) if pairwise else unit_problem(*relu_network(6, 12, 30, 60), 60)[0]
    counted: Counter[str] = Counter()

    def counting(name: str, function: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            counted[name] += 1
            return function(*args, **kwargs)

        return call

    monkeypatch.setattr(block_pivoting, "_enlarge", counting("rounds", block_pivoting._enlarge))
    monkeypatch.setattr(block_pivoting, "solve_on", counting("passes", block_pivoting.solve_on))
    monkeypatch.setattr(block_pivoting, "_collect", lambda done, rest, batch: (done, rest))
    monkeypatch.setattr(torch.Tensor, "tolist", counting("tolist", torch.Tensor.tolist))
    with Questions() as questions:
        block_pivoting.search(problem)
    assert counted["rounds"] > 1
    assert counted["passes"] > counted["rounds"] + 1
    assert not +questions.asked
    # A round asks whether to go on, the last one that it is the last; so does each pass, which solves once.
    assert counted["tolist"] == (counted["rounds"] + 1) + counted["passes"]


def test_the_count_sees_what_asks():
    with Questions() as questions:
        draws = draw_directions(4, 3, seed=0)
        draws[draws[:, 0] > 0]
        bool(draws[0, 0] > 0)
        (draws > 0).nonzero()
    assert +questions.asked == Counter({"index": 1, "_local_scalar_dense": 1, "nonzero": 1})
