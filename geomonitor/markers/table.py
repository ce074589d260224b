"""The table of markers: what each is, what it is computed from, what it costs, which direction is worse, its source."""

from __future__ import annotations

from types import MappingProxyType

from geomonitor.markers import rows
from geomonitor.markers.marker import Cost, Marker, State

MARKERS: MappingProxyType[str, Marker] = MappingProxyType(
    rows.GEOMETRY
    | rows.SPECTRUM
    | rows.PER_CLASS
    | rows.CLASSES
    | rows.POINTS
    | rows.FACTORS
    | rows.LOGITS
    | rows.SHIFTS
    | rows.VIEWS
    | rows.TOKENS
    | rows.HEAD
    | rows.ROUTING
)
"""Every marker that can be asked for, by the name under which it is computed, recorded and logged."""

TRUTH = rows.TRUTH
"""What a ``TransferProbe`` measures; in no group of markers, and never judged by a panel."""

BESIDE: MappingProxyType[str, Marker] = MappingProxyType(TRUTH | rows.GRADIENTS)
"""What is measured beside the markers if the monitor has points for it: ``truth=``, ``coherence_probe=``."""

COUNTS = frozenset({"numerical_rank", "spectral_outliers"})
"""Markers that are whole numbers: known to half a unit, however steady they are."""

MARKER_GROUPS: MappingProxyType[str, tuple[str, ...]] = MappingProxyType(
    {
        "default": (
            *("capacity", "dimension", "radius", "utility"),
            *("participation_ratio", "participation_ratio_per_class", "numerical_rank"),
            *("nc1", "cdnv", "mean_norm", "dead_units", "accuracy"),
        ),
        # The eighteen columns of the paper's figure 4. Two differ: accuracy is measured on the held-out probe set (its
        # acc_test), and capacity replaces its acc_train, which held-out points cannot give.
        "paper": (
            *("capacity", "dimension", "radius", "utility"),
            *("center_alignment", "axis_alignment", "center_axis_alignment"),
            *("participation_ratio", "numerical_rank", "nc1"),
            *("active_fraction", "mean_covariance", "feature_distance", "within_class_distance", "angle"),
            *("accuracy", "auroc", "entropy"),
        ),
        "all": tuple(
            name
            for name, row in MARKERS.items()
            if row.cost != "forward" and row.state not in ("tokens", "routing", "factors")
        ),
        # Self-supervised training: label-free; most of them need views.
        "ssl": (*rows.VIEWS, "uniformity", "rankme", "spectral_decay", "participation_ratio", "numerical_rank"),
        # Language models: anisotropy and what explains it, the spectrum, the entropy of the tokens of a sequence.
        "lm": (
            *("mean_cosine", "centred_mean_cosine", "top_channel_share", "rankme", "intrinsic_dimension"),
            "token_entropy",
        ),
        "moe": tuple(rows.ROUTING),  # mixtures of experts
    }
)
"""Names for several markers at once; ``"all"`` is all that needs no further pass, no tokens, routers or attributes."""

LABEL_FREE = frozenset(
    name
    for name, row in MARKERS.items()
    if row.state in ("spectrum", "views", "tokens", "routing")
    or (row.state == "points" and name not in {*rows.PER_CLASS, "nc4", "within_class_distance"})
)
"""Markers that are functions of features alone."""

__all__ = ["BESIDE", "COUNTS", "LABEL_FREE", "MARKERS", "MARKER_GROUPS", "TRUTH", "Cost", "Marker", "State"]
