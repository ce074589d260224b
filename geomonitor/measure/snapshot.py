"""What the figures of one measurement show: spectrum, class centres, a plane with clouds and anchors, class dimensions.

Everything comes from the points that the measurement holds already; no second forward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from geomonitor import _options
from geomonitor._threads import threads_for
from geomonitor._warnings import cause_of
from geomonitor.glue.draws import SEEDS, Dichotomies, given_or_drawn_dichotomies, given_or_drawn_directions
from geomonitor.glue.joint import anchor_points
from geomonitor.markers.inputs import feature_matrix, require_labels
from geomonitor.markers.singular_values import Spectrum
from geomonitor.markers.spectrum import participation_ratio

MOST_CLASSES = 10
"""Classes in the plane at the most: more colours than that cannot be told apart."""
MOST_POINTS = 60
"""Points of a class in the plane at the most."""
MOST_DIRECTIONS = 40
"""Anchor points of a class in the plane at the most."""


class Plane(NamedTuple):
    """Points, centres and anchors in the plane of the two leading directions of the class centres.

    The first ``p <= MOST_CLASSES`` classes; the origin is the mean of all centres.
    """

    share: Tensor
    """``(2,)`` share of the variance of the centres along each axis; zeros if all centres are equal"""
    points: Tensor
    """``(q, 2)``"""
    point_classes: Tensor
    """``(q,)`` int64, ``0 .. p-1``"""
    centers: Tensor
    """``(p, 2)`` class means"""
    anchors: Tensor
    """``(t, p, 2)``; NaN if a class has no anchor for a direction"""


class Snapshot(NamedTuple):
    """One layer at one measurement; all tensors on the CPU, float64 but for counts."""

    layer: str
    step: int
    """optimiser steps done"""
    epoch: int | None
    classes: tuple[int, ...]
    """labels of the ``P`` classes"""
    eigenvalues: Tensor
    """``(min(Q, N),)`` of the covariance of all points, descending"""
    class_dimensions: Tensor
    """``(P,)`` participation ratio of the points of each class; NaN if they are all equal"""
    center_cosines: Tensor | None
    """``(P, P)`` cosines of the class means less their mean; NaN for a mean that lies there. None: not kept"""
    plane: Plane | None
    """None: not kept"""

    @property
    def when(self) -> str:
        """Step and epoch in words."""
        return f"step {self.step}" if self.epoch is None else f"epoch {self.epoch} (step {self.step})"

    def as_reference(self) -> Snapshot:
        """What a later figure compares with, small enough for a checkpoint."""
        return self._replace(center_cosines=None, plane=None)

    def state_dict(self) -> dict[str, Any]:
        """Plain Python and tensors, of :meth:`as_reference`; ``Snapshot(**state)`` brings it back."""
        return self.as_reference()._asdict()


def take_snapshot(
    features: Tensor,
    labels: Tensor,
    *,
    layer: str = "penultimate",
    step: int = 0,
    epoch: int | None = None,
    directions: int | Tensor = 200,
    dichotomies: Dichotomies | Tensor = "balanced",
    seed: int = 0,
) -> Snapshot:
    """A snapshot of features.

    The anchors in the plane solve the joint problem of the shown classes, for the first ``MOST_DIRECTIONS`` of the
    measurement's directions: with at most ``MOST_CLASSES`` classes in the joint mode they are the same anchors that the
    measures are computed from.

    Args:
        features: ``(Q, N)``, one point a row.
        labels: ``(Q,)`` integers, two classes at least.
        layer: alias of the layer.
        step: optimiser steps done.
        epoch: epoch, from 0.
        directions: as in :func:`geomonitor.manifold_geometry`.
        dichotomies: likewise.
        seed: likewise.

    Raises:
        InputError: wrong shape or type, fewer than two classes, NaN or infinite features.

    >>> shot = take_snapshot(torch.eye(4), torch.tensor([0, 0, 1, 1]))
    >>> shot.class_dimensions.tolist(), shot.plane.points.shape
    ([1.0, 1.0], torch.Size([4, 2]))
    """
    x = feature_matrix(features)
    require_labels(labels, len(x))
    layer, seed = _options.text("layer", layer), int(SEEDS.number("seed", seed))
    step, epoch = _options.whole("step", step, least=0), _options.whole_or_none("epoch", epoch, least=0)
    with torch.no_grad(), threads_for(len(x), x.device):
        names, class_of = torch.unique(labels.to(x.device), return_inverse=True)
        t = given_or_drawn_directions(directions, x.shape[1], seed=seed)
        pairwise = isinstance(dichotomies, Tensor) and dichotomies.shape[1:] != (len(names),)
        y = given_or_drawn_dichotomies(
            "balanced" if pairwise else dichotomies, (len(t), len(names)), pairwise=False, seed=seed
        )
        spectrum = Spectrum.of(x)
        means = torch.stack([x[class_of == c].mean(dim=0) for c in range(len(names))])
        offsets = means - means.mean(dim=0)
        return Snapshot(
            layer,
            step,
            epoch,
            tuple(names.tolist()),
            ((spectrum.scale * spectrum.centered).square() / spectrum.points).cpu(),
            torch.stack([_dimension(x[class_of == c]) for c in range(len(names))]).cpu(),
            _cosines(offsets).cpu(),
            _plane(x, class_of, means, t[:MOST_DIRECTIONS].to(x.device), y[:MOST_DIRECTIONS].to(x.device)),
        )


def take_snapshots(
    points: Mapping[str, tuple[Tensor, Tensor]],
    classes: Sequence[int],
    warn: Callable[[str, str], None],
    *,
    step: int,
    epoch: int | None,
    options: Mapping[str, Any],
) -> dict[str, Snapshot]:
    """Snapshots of several layers; a layer for which it fails is left out, with a warning.

    Args:
        points: points ``(Q, N)`` and class numbers ``(Q,)`` by layer, of all processes.
        classes: label of each class number.
        warn: warns the user: takes the message and a key of its cause.
        step: optimiser steps done.
        epoch: epoch, from 0.
        options: directions, dichotomies and seed among them, see :func:`take_snapshot`.
    """
    own = {name: options[name] for name in ("directions", "dichotomies", "seed")}
    shots: dict[str, Snapshot] = {}
    for layer, (features, labels) in points.items():
        try:
            shot = take_snapshot(features, labels, layer=layer, step=step, epoch=epoch, **own)
            shots[layer] = shot._replace(classes=tuple(classes[c] for c in shot.classes))
        except Exception as error:  # noqa: BLE001 - a warning; a figure is not worth a run
            warn(f"no snapshot of layer {layer!r} for figures. {error!r}", cause_of(error))
    return shots


def _dimension(points: Tensor) -> Tensor:
    return participation_ratio(points) if len(points) > 1 else points.new_tensor(torch.nan)


def _cosines(rows: Tensor) -> Tensor:
    norms: Tensor = torch.linalg.vector_norm(rows, dim=1)
    rounding = 8 * torch.finfo(rows.dtype).eps * norms.amax()
    units = rows / torch.where(norms > rounding, norms, torch.nan)[:, None]
    return units @ units.T


def _plane(x: Tensor, class_of: Tensor, means: Tensor, directions: Tensor, signs: Tensor) -> Plane:
    origin = means.mean(dim=0)
    _, sizes, axes = torch.linalg.svd(means - origin, full_matrices=False)
    # Two axes also for a single unit, or for two classes, whose centres span one direction.
    axes = torch.nn.functional.pad(axes[:2], (0, 0, 0, 2 - len(axes[:2])))
    variances = torch.nn.functional.pad(sizes.square(), (0, 2))
    shown = min(len(means), MOST_CLASSES)
    kept = class_of < shown
    solved = anchor_points(x[kept], class_of[kept], directions, signs[:, :shown])
    none = (solved == 0).all(dim=2, keepdim=True)
    few = torch.cat([(class_of == c).nonzero()[:MOST_POINTS, 0] for c in range(shown)])
    return Plane(
        (variances[:2] / variances.sum().clamp(min=torch.finfo(x.dtype).tiny)).cpu(),
        ((x[few] - origin) @ axes.T).cpu(),
        class_of[few].cpu(),
        ((means[:shown] - origin) @ axes.T).cpu(),
        torch.where(none, torch.nan, (solved - origin) @ axes.T).cpu(),
    )
