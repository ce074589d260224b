"""Pure functions, tensors in, tensors out: the only home of formulas. ``MARKERS`` is their table."""

from __future__ import annotations

from types import MappingProxyType
from typing import Literal, NamedTuple

State = Literal["manifolds", "spectrum", "classes"]


class Marker(NamedTuple):
    """A row of the table of markers."""

    description: str
    state: State
    """the kind of state it is computed from, that is, which Metric gives it"""
    worse: Literal["lower", "higher", None]
    """direction that goes with worse transfer to new classes; None where neither does, or nobody knows"""
    source: str


_GLUE = "Chou et al. 2026, arXiv:2603.01879"
_ALIGNMENT = "mean cosine between {}, over ordered pairs of classes"

MARKERS: MappingProxyType[str, Marker] = MappingProxyType(
    {
        "capacity": Marker("classes that can be separated per feature dimension", "manifolds", None, _GLUE),
        "dimension": Marker("effective dimension of the class manifolds", "manifolds", "lower", _GLUE),
        "radius": Marker("effective radius of the class manifolds against their centres", "manifolds", None, _GLUE),
        "utility": Marker(
            "share of the capacity's cost that within-class variation bears", "manifolds", "lower", _GLUE
        ),
        "center_alignment": Marker(_ALIGNMENT.format("centres"), "manifolds", None, _GLUE),
        "axis_alignment": Marker(_ALIGNMENT.format("axes"), "manifolds", None, _GLUE),
        "center_axis_alignment": Marker(_ALIGNMENT.format("centre and axis"), "manifolds", None, _GLUE),
        "absolute_center_alignment": Marker("absolute " + _ALIGNMENT.format("centres"), "manifolds", None, _GLUE),
        "absolute_axis_alignment": Marker("absolute " + _ALIGNMENT.format("axes"), "manifolds", None, _GLUE),
        "absolute_center_axis_alignment": Marker(
            "absolute " + _ALIGNMENT.format("centre and axis"), "manifolds", None, _GLUE
        ),
        "participation_ratio": Marker("directions that carry variance", "spectrum", "lower", "Gao et al. 2017"),
        "numerical_rank": Marker(
            "singular values above 1e-3 of the largest", "spectrum", "lower", "Masarczyk et al. 2023"
        ),
        "effective_rank": Marker(
            "exponential of the entropy of the covariance's eigenvalues",
            "spectrum",
            "lower",
            "Roy and Vetterli 2007",
        ),
        "stable_rank": Marker(
            "squared Frobenius norm over squared spectral norm",
            "spectrum",
            "lower",
            "Rudelson and Vershynin 2007",
        ),
        "rankme": Marker(
            "exponential of the entropy of the singular values, not centred",
            "spectrum",
            "lower",
            "Garrido et al. 2023",
        ),
        "nc1": Marker(
            "within-class covariance in units of the between-class one",
            "classes",
            "lower",
            "Papyan et al. 2020",
        ),
        "nc1_ratio": Marker(
            "within-class variance over between-class variance", "classes", "lower", "Papyan et al. 2020"
        ),
    }
)
"""Every marker by the name under which it is computed, recorded and logged."""

MARKER_GROUPS: MappingProxyType[str, tuple[str, ...]] = MappingProxyType(
    {
        "default": (
            "capacity",
            "dimension",
            "radius",
            "utility",
            "participation_ratio",
            "numerical_rank",
            "nc1",
        ),
        "all": tuple(MARKERS),
    }
)
"""Names for several markers at once."""
