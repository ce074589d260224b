"""A row of the table of markers."""

from __future__ import annotations

from typing import Literal, NamedTuple

State = Literal[
    "manifolds", "spectrum", "classes", "points", "factors", "logits", "head", "shifts", "views", "tokens", "routing",
    "truth", "gradients",
]  # fmt: skip
Cost = Literal["low", "medium", "high", "forward", "backward"]


class Marker(NamedTuple):
    """A row of the table of markers."""

    description: str
    state: State
    """the state it is computed from, that is, which Metric computes it"""
    cost: Cost
    """``"low"``: sums over the features; ``"medium"``: a decomposition or all pairs of points, shared by all markers of
    its state; ``"high"``: an optimisation problem for each direction; ``"forward"``: one more forward pass of the probe
    set; ``"backward"``: a forward and a backward pass for each of some points, twice"""
    worse: Literal["lower", "higher", None]
    """direction in which networks transfer worse to new classes, or that is plainly worse (accuracy); None if
    neither holds, or it is not known. Taken from the paper if the sign is the same in 15 of its 16 groups; for
    ``cdnv`` from its source, which bounds the error of few shots on new classes by it; for those of pathways and
    of linear factors as their source has it, which is not confirmed here"""
    source: str
