"""What a measurement finds out about itself, and later ones have to share: dtypes, and the batch size if it matters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from geomonitor._distributed import Processes
from geomonitor.errors import MeasurementError
from geomonitor.probe.probe_set import ProbeSet

_MOVED = 10.0
"""Roundings by which the row in the place of a point has to differ, if another row counts as the one of the point."""


class Identity(NamedTuple):
    """Part of the protocol, from the first measurement on."""

    dtypes: dict[str, str]
    """in which each layer computed, by alias"""
    batch_size: int | None
    """points in one forward pass, if the features of a point depend on the others; else None"""

    def as_protocol(self) -> dict[str, Any]:
        """By name, as in a protocol."""
        return {"dtypes": self.dtypes, **({} if self.batch_size is None else {"batch_size": self.batch_size})}

    @classmethod
    def of(cls, protocol: Mapping[str, Any]) -> Identity | None:
        """That of a saved protocol; None if it has none.

        >>> Identity.of({"dtypes": {"fc": "float32"}})
        Identity(dtypes={'fc': 'float32'}, batch_size=None)
        """
        return cls(dict(protocol["dtypes"]), protocol.get("batch_size")) if "dtypes" in protocol else None

    def require_dtypes(self, found: Mapping[str, str]) -> None:
        """Refuse to measure in another dtype.

        Raises:
            MeasurementError: what differs.
        """
        before = self.dtypes
        changed = [f"{name}: {before[name]} -> {now}" for name, now in found.items() if before.get(name, now) != now]
        if changed:
            raise MeasurementError(
                f"the layers compute in another dtype than before ({'; '.join(changed)}): not comparable numbers. "
                "Measure in the dtype of the series, or start a new one (a new monitor, or monitor.reset())."
            )


def depends_on_batch(features: Mapping[str, Tensor], fewer: Mapping[str, Tensor]) -> bool:
    """Whether the features of the same points differ between two batches by more than rounding.

    By layer ``||A - B|| / ||A||`` over finite rows; rounding is the square root of the dtype's precision: float32
    kernels of other batch shapes differ by 1e-7 to 1e-5, batch statistics of two points by 0.1 to 1.

    Args:
        features: ``(B, N)`` by layer, of a batch.
        fewer: ``(B', N)`` by layer, ``B' <= B``, the same points first, of another batch.

    >>> depends_on_batch({"fc": torch.ones(3, 2)}, {"fc": torch.ones(2, 2) + 1e-6})
    False
    """
    for layer, rows in features.items():
        other = fewer[layer]
        one = rows[: len(other)].double()
        two = other[: len(one)].double().to(one.device)
        finite = (one.isfinite() & two.isfinite()).all(dim=1)
        scale = torch.linalg.vector_norm(one[finite])
        precision = torch.finfo(rows.dtype if rows.is_floating_point() else torch.float32).eps ** 0.5
        if torch.linalg.vector_norm(one[finite] - two[finite]) > precision * scale:
            return True
    return False


def require_order(features: Mapping[str, Tensor], fewer: Mapping[str, Tensor]) -> None:
    """Refuse features that come in another order than the points, as of a model that sorts texts by their length.

    Args:
        features: ``(B, N)`` by layer, of a batch.
        fewer: ``(B', N)`` by layer, ``B' <= B``, the same points first, of another batch.

    Raises:
        MeasurementError: the features that a point has in one batch are in the row of another point in the other one.

    >>> x = torch.eye(3)
    >>> require_order({"rnn": x[[2, 0, 1]]}, {"rnn": x[[1, 0]]})
    Traceback (most recent call last):
    ...
    geomonitor.errors.MeasurementError: layer 'rnn' gives its rows in another order than that of the points: ...
    """
    for layer, rows in features.items():
        known = min(len(rows), len(fewer[layer]))
        one, other = rows.double(), fewer[layer][:known].double().to(rows.device)
        apart = torch.cdist(other, one)
        precision = torch.finfo(rows.dtype if rows.is_floating_point() else torch.float32).eps ** 0.5
        rounding = precision * torch.linalg.vector_norm(other, dim=1)
        elsewhere = (apart <= rounding[:, None]).any(dim=1) & (apart.diagonal() > _MOVED * rounding)
        if bool(elsewhere.any()):
            raise MeasurementError(
                f"layer {layer!r} gives its rows in another order than that of the points: the same features are in "
                "the row of another point if fewer run together, so their classes would be wrong. Does the model sort "
                "or shuffle its batch? Name a layer after the points are in their order again, or give forward= a "
                "function that sorts the points as the model needs them, and puts its outputs back in their order"
            )


def points_at_once(probe: ProbeSet, batch_size: int, processes: int) -> int:
    """Points in the largest batch of a probe pass: also a matter of how many processes share the probe set.

    Args:
        probe: the points.
        batch_size: the most points in a batch.
        processes: how many share them.
    """
    part = -(-probe.items // processes)
    return -(-part // -(-part // batch_size))


def agreed(processes: Processes, dtypes: Mapping[str, str], matters: bool, batch_size: int) -> Identity:
    """The identity of a first measurement; all processes call this.

    Args:
        processes: that measure together.
        dtypes: by layer, in this process.
        matters: whether the batch size does, as far as this process has seen.
        batch_size: points in a forward pass.

    Raises:
        MeasurementError: the layers compute in other dtypes in another process; in all processes.
    """
    found: Sequence[tuple[dict[str, str], bool]] = processes.gathered((dict(dtypes), matters))
    known = [each for each, _ in found if each]  # a process without points has none
    if any(each != known[0] for each in known):
        by_rank = "; ".join(f"rank {name}: {each}" for name, (each, _) in zip(processes.names, found, strict=True))
        raise MeasurementError(f"the layers compute in other dtypes on some ranks, so nothing is measured: {by_rank}")
    return Identity(dict(known[0]) if known else {}, batch_size if any(matters for _, matters in found) else None)
