"""The protocol of the manifold geometry as one object: what a monitor, a metric and a configuration file share."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, get_args

from geomonitor import _options
from geomonitor.errors import InputError
from geomonitor.glue.draws import DIRECTIONS, SEEDS, Dichotomies
from geomonitor.glue.manifolds import Mode

# `benchmarks/conditioning.py`: from 1e-6 on, relative noise of 1e-7 moves no measure by more than 1e-3 standard errors.
# The bias on well-posed features is 0.002 at 1e-5, 0.04 at 1e-4, 0.17 to 0.4 at 1e-3; a smaller ridge takes longer.
WELL_POSED_RIDGE = 1e-4


@dataclass(frozen=True)
class GeometryOptions:
    """How the manifold geometry is measured; numbers from two protocols are never compared or joined in one series.

    Args:
        directions: how many random directions; standard errors fall with its root.
        dichotomies: the ensemble of dichotomies of the classes.
        mode: all classes in one problem, or pairs of classes (many classes).
        pairs: class pairs to draw in the pairwise mode; None: all.
        seed: of the draws, which stay the same for a whole run.
        ridge: on the Gram matrix of normalised points, in the solver; 0: the definition of the paper. The default makes
            the measures of features of low rank well posed and moves those of trained networks by at most 0.05 standard
            errors, see docs/geometry.md.

    Raises:
        InputError: what is wrong, and what to write.

    >>> GeometryOptions(directions=100).directions
    100
    """

    directions: int = 200
    dichotomies: Dichotomies = "balanced"
    mode: Mode = "joint"
    pairs: int | None = None
    seed: int = 0
    ridge: float = WELL_POSED_RIDGE

    def __post_init__(self) -> None:
        _options.one_of("dichotomies", self.dichotomies, get_args(Dichotomies))
        _options.one_of("mode", self.mode, get_args(Mode))
        # Nothing is computed: a default of a signature is made on import, and a process that has used the threads of
        # torch cannot be forked safely.
        checked = {
            "directions": int(DIRECTIONS.number("directions", self.directions)),
            "pairs": _options.whole_or_none("pairs", self.pairs),
            "seed": int(SEEDS.number("seed", self.seed)),
            "ridge": float(_options.NOT_NEGATIVE.number("ridge", self.ridge)),
        }
        if self.pairs is not None and self.mode != "pairwise":
            raise InputError(f'pairs are drawn in mode="pairwise" only; got pairs={self.pairs!r}, mode={self.mode!r}')
        for name, value in checked.items():
            object.__setattr__(self, name, value)

    @classmethod
    def of(cls, given: GeometryOptions | Mapping[str, Any]) -> GeometryOptions:
        """Options as they are, or from a mapping of names, such as a configuration file gives.

        Raises:
            InputError: neither, or a name that does not exist.
        """
        if isinstance(given, GeometryOptions):
            return given
        names = [field.name for field in dataclasses.fields(cls)]
        if not isinstance(given, Mapping) or not set(given) <= set(names):
            unknown = sorted(set(given) - set(names)) if isinstance(given, Mapping) else given
            raise InputError(f"geometry takes GeometryOptions, or a mapping of {', '.join(names)}; got {unknown!r}")
        return cls(**given)

    def as_dict(self) -> dict[str, Any]:
        """By name, for :func:`geomonitor.manifold_geometry` and the protocol."""
        return dataclasses.asdict(self)
