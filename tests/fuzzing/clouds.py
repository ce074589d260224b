"""Feature matrices that are hard on numerics, for the fuzz tests, and what every public function promises on them."""

from __future__ import annotations

import contextlib
import math
import os
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from torch import Tensor

from geomonitor import GeomonitorWarning, InputError

# Every run tries the same 500 examples of each test; HYPOTHESIS_PROFILE=long tries others, many more of them.
QUIET = {"deadline": None, "database": None, "suppress_health_check": list(HealthCheck)}
PROFILES = {
    "default": settings(max_examples=500, derandomize=True, **QUIET),
    "long": settings(max_examples=20_000, derandomize=False, print_blob=True, **QUIET),
}
PROFILE = PROFILES[os.environ.get("HYPOTHESIS_PROFILE", "default")]

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
KINDS = ("plain", "duplicates", "constant units", "zero class", "all equal", "offset", "low rank", "one point a class")


class Cloud(NamedTuple):
    """Points of classes; ``finite`` says whether all survived the dtype and the scale."""

    features: Tensor
    labels: Tensor
    kind: str
    finite: bool


@st.composite
def clouds(draw: Any, classes: int = 2) -> Cloud:
    """``Q`` points, ``N`` units, at least ``classes`` classes, any dtype, scales 1e-12 to 1e12."""
    count = draw(st.integers(classes, 4))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    kind = draw(st.sampled_from(KINDS))
    per_class = 1 if kind == "one point a class" else draw(st.integers(1, 5))
    units = draw(st.integers(1, 9))
    labels = torch.arange(count).repeat_interleave(per_class)
    labels = torch.cat([labels, labels[: draw(st.integers(0, 2))]])  # classes of unequal size
    x = torch.randn(len(labels), units, generator=generator, dtype=torch.float64)
    x = x + draw(st.sampled_from([0.0, 3.0])) * torch.randn(count, units, generator=generator).double()[labels]
    if kind == "duplicates":
        x = x[torch.randint(len(x), (len(x),), generator=generator)]
    elif kind == "constant units":
        x[:, : max(1, units // 2)] = 0.1
    elif kind == "zero class":
        x[labels == 0] = 0
    elif kind == "all equal":
        x = x[:1].expand(len(x), -1)
    elif kind == "offset":
        x = x + 1e4
    elif kind == "low rank":
        x = x[:, :1] @ x[:1]
    x = (x * 10.0 ** draw(st.integers(-12, 12))).to(draw(st.sampled_from(DTYPES)))
    spoiled = draw(st.sampled_from([None] * 8 + [math.nan, math.inf]))
    if spoiled is not None:
        x = x.clone()
        x[-1, 0] = spoiled
    order = torch.randperm(len(x), generator=generator)
    names = draw(st.sampled_from([(0, 1, 2, 3), (-7, 3, 4, 1000)]))
    return Cloud(x[order], torch.tensor(names)[labels][order], kind, bool(x.isfinite().all()))


TENSORS = st.one_of(
    st.builds(torch.zeros, st.lists(st.integers(0, 3), max_size=4)),
    st.builds(lambda shape, dtype: torch.ones(shape, dtype=dtype), st.lists(st.integers(0, 3), max_size=3),
              st.sampled_from([torch.int64, torch.bool, torch.complex64, torch.float64, torch.uint8])),
)  # fmt: skip
"""Tensors of any shape and dtype, most of them wrong for any purpose."""


def measured(function: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """What a function returns, or None where it refused the input; any other error or foreign warning goes through."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", GeomonitorWarning)
        with contextlib.suppress(InputError):
            return function(*args, **options)
        return None


def in_range(value: Tensor | float, low: float, high: float, slack: float = 1e-9) -> bool:
    """Whether a value lies in a closed range, up to rounding, or is NaN: undefined."""
    number = float(value)
    return math.isnan(number) or low - slack * max(1, abs(low)) <= number <= high + slack * max(1, abs(high))
