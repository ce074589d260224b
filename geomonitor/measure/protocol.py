"""The protocol of a measurement: all that makes two measurements comparable. Only series of one protocol are joined."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from geomonitor.errors import InputError
from geomonitor.features.capture import Pool
from geomonitor.features.routers import checked_routers
from geomonitor.glue.options import GeometryOptions
from geomonitor.measure.measurement import Plan
from geomonitor.probe.probe_set import ProbeSet
from geomonitor.probe.validation_probe import ValidationProbe


def protocol_of(
    probe: ProbeSet | ValidationProbe,
    layers: str | Sequence[str] | Mapping[str, str],
    pool: Pool,
    plan: Plan,
    *,
    forward: object = None,
) -> dict[str, Any]:
    """The protocol in plain Python, as it stands in checkpoints and side files.

    Args:
        probe: which points.
        layers: from which features are taken.
        pool: how they become one row a point.
        plan: what is measured: the geometry's own protocol, input shifts, the probes beside it.
        forward: runs the model; None: as it is usually called.
    """
    named: Any = layers
    if not isinstance(layers, str):
        named = dict(layers) if isinstance(layers, Mapping) else list(layers)
    shifts, new = sorted(plan.shifts), None if plan.truth is None else plan.truth.probe.content
    trained = plan.coherence_probe
    views = getattr(probe, "views", None)
    how = None if views is None else views.how_viewed
    made_from = getattr(probe, "made_from", None)
    return {
        "probe": probe.fingerprint,
        **({} if probe.content is None else {"content": probe.content}),
        "classes": [int(label) for label in probe.classes],
        "per_class": int(probe.per_class),
        **({} if made_from is None else {"targets": dict(made_from)}),
        "layers": named,
        "pool": pool if isinstance(pool, str) else getattr(pool, "__qualname__", "custom"),
        "forward": "model(inputs)" if forward is None else _name_of(forward),
        **plan.geometry.as_dict(),
        **({"shifts": shifts} if shifts else {}),
        **({} if plan.truth is None else {"truth": plan.truth.fingerprint}),
        **({} if how is None else {"views": how.as_protocol()}),
        **({} if views is None or views.content is None else {"views content": views.content}),
        **({} if new is None else {"truth content": new}),
        **({} if trained is None else {"coherence": trained.fingerprint}),
        **({} if trained is None or trained.content is None else {"coherence content": trained.content}),
        **({} if plan.coherence_loss is None else {"coherence loss": _name_of(plan.coherence_loss)}),
        **({} if plan.routers is None else {"routers": checked_routers(plan.routers)}),
    }


def _name_of(function: object) -> str:
    name: str = getattr(function, "__qualname__", type(function).__qualname__)
    return name


def differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Names of the settings in which two protocols differ: only numbers of one protocol are compared.

    What an older version did not record had its default then. What is in ``KNOWN_LATER`` is compared if both name it.

    >>> differences({"probe": "a", "content": "b"}, {"probe": "a"}), differences({"probe": "a"}, {"probe": "b"})
    ([], ['probe'])
    """
    names = [name for name in sorted({*one, *other}) if name not in KNOWN_LATER or (name in one and name in other)]
    return [name for name in names if one.get(name, _DEFAULTS.get(name)) != other.get(name, _DEFAULTS.get(name))]


def explained(name: str) -> str:
    """The name of a setting, with a word on what it means if it differs."""
    return "content (other data under the same indices)" if name == "content" else name


def same_protocol(now: Mapping[str, Any], saved: Mapping[str, Any], *, required: bool) -> bool:
    """Whether two series may be joined.

    Args:
        now: protocol of this monitor.
        saved: that of a saved one.
        required: another protocol is an error.

    Raises:
        InputError: what differs, if ``required``.
    """
    changed = differences(now, saved)
    if changed and required:
        found = "; ".join(
            f"{explained(name)}: {saved.get(name, _DEFAULTS.get(name))} -> {now.get(name)}" for name in changed
        )
        old = {name: saved.get(name, value) for name, value in _DEFAULTS.items() if name in changed}
        how = f" (geometry={old})" if old else ""
        raise InputError(
            f"the saved geometry was measured by another protocol ({found}). Restore the old settings{how}, "
            "or pass allow_protocol_change=True to start a new series."
        )
    return not changed


KNOWN_LATER = (
    *("targets", "resolved", "forward", "dtypes", "batch_size"),
    *("content", "truth content", "views content", "coherence content"),
)
"""What older versions, some probe sets, and runs that have not measured yet do not have."""
# Protocols that do not name a ridge were measured without one.
_DEFAULTS: Mapping[str, Any] = GeometryOptions(ridge=0.0).as_dict()
