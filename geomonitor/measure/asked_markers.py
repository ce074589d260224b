"""Which markers are measured: what a user asks for, as far as the probe set can give it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from geomonitor._random import preserved_rng
from geomonitor.errors import InputError
from geomonitor.markers import MARKER_GROUPS, MARKERS
from geomonitor.markers.names import marker_names
from geomonitor.markers.rows import FACTORS
from geomonitor.markers.table import LABEL_FREE
from geomonitor.measure.tokens import TOKEN_ENTROPY
from geomonitor.probe.probe_set import ProbeSet
from geomonitor.probe.shifts import BUILT_IN, SHIFT_MARKER, Shift, named_shifts, shifted


def markers_and_shifts(
    markers: Sequence[str] | str, shifts: Sequence[str] | Mapping[str, Shift], probe: object
) -> tuple[tuple[str, ...], dict[str, Shift | None]]:
    """Names of all markers to measure, and the input shifts by name, None for a built-in one.

    Args:
        markers: groups and names, those of the accuracy under a built-in shift among them.
        shifts: as in ``GeometryMonitor``.
        probe: what is measured; built-in shifts are tried on one of its points.

    Raises:
        InputError: an unknown name, a built-in shift of what is no image, or shifts without a ``ProbeSet``.
    """
    chosen = named_shifts(shifts)
    names = marker_names(markers, more=[SHIFT_MARKER + name for name in chosen])
    names = _measurable(names, markers, probe)
    chosen |= {name: None for name in BUILT_IN if SHIFT_MARKER + name in names and name not in chosen}
    if chosen and not isinstance(probe, ProbeSet):
        raise InputError("input shifts need forward passes of their own, which a ValidationProbe does not make")
    if None in chosen.values() and isinstance(probe, ProbeSet):
        with preserved_rng():
            batch = next(probe.loader(1))
            for name in (name for name, shift in chosen.items() if shift is None):
                shifted(name, None, batch.inputs, batch.ids)
    return tuple(dict.fromkeys([*names, *(SHIFT_MARKER + name for name in chosen)])), chosen


def _measurable(names: tuple[str, ...], asked: Sequence[str] | str, probe: object) -> tuple[str, ...]:
    """The markers that a probe can give: what a group names besides is left out, what a user names is refused.

    Raises:
        InputError: a marker that needs labels, logits, views, attributes or tokens, without these.
    """
    labelled = getattr(probe, "labelled", True)
    viewed, crossed = getattr(probe, "views", None) is not None, getattr(probe, "attributes", None) is not None
    whole = asked if isinstance(asked, str) else asked[0] if len(asked) == 1 else ""
    if whole in ("default", "all") and viewed:  # a pass of views was asked for with the probe set
        names = tuple(dict.fromkeys([*names, *(name for name in MARKERS if MARKERS[name].state == "views")]))
    if whole in ("default", "all") and crossed:  # and attributes likewise
        names = tuple(dict.fromkeys([*names, *FACTORS]))
    if TOKEN_ENTROPY in names and not isinstance(probe, ProbeSet):
        raise InputError(f"{TOKEN_ENTROPY} needs every token of a sequence, which a ValidationProbe does not hold")
    made = isinstance(probe, ProbeSet) and labelled and not probe.logit_columns
    missing = {
        "need labels, and the probe set has none. Leave them out, or give ProbeSet.from_dataset(labelled dataset)": [
            name for name in names if not labelled and name not in LABEL_FREE
        ],
        "need logits of the classes, and those of the probe set were made of targets (quantile_bins, label_sets) or of "
        "two attributes, which no model predicts. Leave them out": [
            name for name in names if made and needs_logits(name)
        ],
        "need views of the points. Leave them out, or give ProbeSet.from_unlabelled(dataset, views=...)": [
            name for name in names if not viewed and name in MARKERS and MARKERS[name].state == "views"
        ],
        "need two attributes of each point. Leave them out, or give ProbeSet.from_dataset(dataset, "
        'label_key=("shape", "colour")), the names of two of its fields': [
            name for name in names if not crossed and name in FACTORS
        ],
    }
    if whole not in MARKER_GROUPS or whole in ("ssl", "lm"):
        for why, without in missing.items():
            if without:
                raise InputError(f"{', '.join(without)}: {why}")
    left_out = {name for without in missing.values() for name in without}
    return tuple(name for name in names if name not in left_out)


def needs_logits(name: str) -> bool:
    """Whether a marker is computed from the logits of the classes, or from the head that gives them.

    >>> needs_logits("accuracy"), needs_logits("nc3"), needs_logits("nc1")
    (True, True, False)
    """
    return name in ("nc3", "nc4") or name not in MARKERS or MARKERS[name].state in ("logits", "shifts", "head")
