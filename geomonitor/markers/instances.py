r"""Markers of instances: each item of a data set is a manifold, and its views are the points. No labels are needed.

:math:`z_{iv}` is view ``v`` of instance ``i`` of ``P``, :math:`m_i` the mean of its ``V`` views.
"""

from __future__ import annotations

from collections.abc import Callable
from types import MappingProxyType

import torch
from torch import Tensor

from geomonitor import _options
from geomonitor.errors import InputError
from geomonitor.markers.estimate import Estimate, jackknife
from geomonitor.markers.inputs import feature_matrix, require_labels
from geomonitor.markers.moments import moments_of
from geomonitor.markers.unit_vectors import unit_rows

DELTA = 0.01
"""Ridge on the within-instance covariance, as a share of its mean eigenvalue. The absolute 1e-4 of the source makes
the marker depend on the scale of the features: 33.5 to 37.8 over two decades."""
EPSILON = 1e-8
"""Added to each eigenvalue, as in the source: keeps the logarithm finite."""
BLOCKS = 20
"""Parts of the instances that the jackknife leaves out in turn: one at a time would be as many decompositions."""
ROUNDING = (8 * torch.finfo(torch.float64).eps) ** 2
"""Share of the squared size of features below which the variance within instances is rounding: equal views."""


def lidar(features: Tensor, instances: Tensor, *, delta: float | None = None) -> Estimate:
    r"""LiDAR: exponential entropy of the eigenvalues of :math:`S_w^{-1/2} S_b S_w^{-1/2}`, instances being the classes.

    .. math::
        S_b = \tfrac{1}{P-1}\sum_i (m_i-\bar m)(\cdot)^\top, \quad
        S_w = \tfrac{1}{P(V-1)}\sum_{iv} (z_{iv}-m_i)(\cdot)^\top + \delta I, \quad
        \exp\Bigl(-\sum p\ln p\Bigr),\ p = \tfrac{\lambda + 10^{-8}}{\sum(\lambda + 10^{-8})}

    It is biased down and grows with ``P``: compare numbers of the same ``P`` and ``V`` only. Of pure noise it is large,
    as of a healthy network: read it beside :func:`instance_snr`.

    Args:
        features: ``(Q, N)``, views of instances.
        instances: ``(Q,)`` integers: of which instance each row is a view.
        delta: absolute ridge; None: 0.01 of the mean eigenvalue of ``S_w``, which does not depend on the scale.

    Returns:
        Value in ``[1, min(N, P - 1)]`` up to the 1e-8, and its error by a jackknife over 20 blocks of instances. NaN
        if all views are equal, or no instance has two.

    Raises:
        InputError: mismatched lengths, NaN or infinite features, fewer than two instances.

    Source: Thilak et al. 2023, arXiv:2312.04000; the relative ridge is an addition.

    >>> instances = torch.eye(4).repeat_interleave(2, 0)  # two views of each of four, at equal distances
    >>> views = torch.tensor([1.0, -1.0]).repeat(4)[:, None] * instances
    >>> found = lidar(torch.cat([100 * instances, views], dim=1), torch.arange(4).repeat_interleave(2))
    >>> round(found.value.item(), 4)
    3.0
    """
    if delta is not None:
        delta = _options.NOT_NEGATIVE.number("delta", delta)
    found = _Instances(features, instances)
    every = torch.ones(found.count, dtype=torch.bool, device=found.means.device)
    value = found.lidar(every, delta)
    blocks = _blocks(found.count).to(every.device)
    return Estimate(value, jackknife(torch.stack([found.lidar(blocks != b, delta) for b in torch.unique(blocks)])))


def instance_snr(features: Tensor, instances: Tensor) -> Estimate:
    r"""Signal to noise of instances: :math:`\operatorname{tr}(S_b - S_w/V) / \operatorname{tr} S_w`, without a ridge.

    The numerator is the unbiased variance of the instances' true means. With views of unequal number :math:`1/V` is the
    mean over instances.

    Args:
        features: ``(Q, N)``, views of instances.
        instances: ``(Q,)`` integers: of which instance each row is a view.

    Returns:
        Value from about ``-1/V`` on; 0 for pure noise; and its jackknife error over 20 blocks of instances. NaN if all
        views of each instance are equal, or no instance has two.

    Raises:
        InputError: as :func:`lidar`.

    Source: geomonitor; one-way analysis of variance.

    >>> x = torch.tensor([[0.0], [2.0], [10.0], [12.0]])  # means 1 and 11, within 2 each
    >>> round(instance_snr(x, torch.tensor([0, 0, 1, 1])).value.item(), 6)  # (50 - 1) / 2
    24.5
    """
    found = _Instances(features, instances)
    every = torch.ones(found.count, dtype=torch.bool, device=found.means.device)
    blocks = _blocks(found.count).to(every.device)
    return Estimate(found.snr(every), jackknife(torch.stack([found.snr(blocks != b) for b in torch.unique(blocks)])))


def alignment(features: Tensor, instances: Tensor) -> Estimate:
    r"""Mean squared distance of two views of an instance, rows of length one: :math:`2 (1 - \text{mean cosine})`.

    Args:
        features: ``(Q, N)``, views of instances.
        instances: ``(Q,)`` integers: of which instance each row is a view.

    Returns:
        Value in ``[0, 4]``: 0 for equal views, also in a collapse (read it beside uniformity), 2 for unrelated ones;
        and its error over instances. Instances with a view at the origin, or with one view, are left out; NaN if all
        are.

    Raises:
        InputError: mismatched lengths, NaN or infinite features.

    Source: Wang and Isola 2020, arXiv:2005.10242, with exponent 2.

    >>> x = torch.tensor([[1.0, 0.0], [0.0, 3.0], [2.0, 0.0], [1.0, 0.0]])
    >>> alignment(x, torch.tensor([5, 5, 6, 6])).value.item()
    1.0
    """
    x = feature_matrix(features)
    require_labels(instances, len(x))
    names, place = torch.unique(instances.to(x.device), return_inverse=True)
    sums = x.new_zeros(len(names), x.shape[1]).index_add(0, place, unit_rows(x))
    views = torch.bincount(place, minlength=len(names)).to(x.dtype)
    cosines = (sums.square().sum(dim=1) - views) / (views * (views - 1))
    distances = 2 * (1 - cosines[(views > 1) & cosines.isfinite()])
    if not len(distances):
        return Estimate(x.new_tensor(torch.nan), x.new_tensor(torch.nan))
    distances = distances.clamp(min=0)  # rounding
    count = len(distances)
    error = distances.std() / count**0.5 if count > 1 else distances.new_tensor(torch.nan)
    return Estimate(distances.mean(), error)


class _Instances:
    """Means and offsets of the views of instances, of which some may be left out."""

    def __init__(self, features: Tensor, instances: Tensor) -> None:
        x = feature_matrix(features)
        require_labels(instances, len(x))
        names, self.place = torch.unique(instances.to(x.device), return_inverse=True)
        self.count = len(names)
        if self.count < 2:
            raise InputError(f"markers of instances need views of at least 2 instances; got {self.count}")
        largest = x.abs().amax()
        self.unit = torch.where(largest > 0, largest, 1.0)
        x = x / self.unit
        moments = moments_of(x, self.place, self.count)
        self.means, self.views, self.spread = moments.means, moments.counts, moments.spread
        self.offsets = moments.factor
        self.scale = x.square().sum()

    def within(self, kept: Tensor) -> Tensor:
        """Sum of the variances within the kept instances; NaN if it is rounding."""
        total, free = self.spread[kept].sum(), (self.views[kept] - 1).sum()
        return torch.where(total > ROUNDING * self.scale, total, torch.nan) / free

    def snr(self, kept: Tensor) -> Tensor:
        means, within = self.means[kept], self.within(kept)
        if len(means) < 2:
            return means.new_tensor(torch.nan)
        return (means.var(dim=0).sum() - within * (1 / self.views[kept]).mean()) / within

    def lidar(self, kept: Tensor, delta: float | None) -> Tensor:
        means, within, width = self.means[kept], self.within(kept), self.means.shape[1]
        if len(means) < 2 or not bool(within.isfinite()):
            return means.new_tensor(torch.nan)
        offsets = self.offsets[kept[self.place]]
        covariance = offsets.T @ offsets / (self.views[kept] - 1).sum()
        ridge = DELTA * within / width if delta is None else delta / self.unit.square()
        factor = torch.linalg.cholesky(covariance + ridge * torch.eye(width, dtype=means.dtype, device=means.device))
        whitened = torch.linalg.solve_triangular(factor, (means - means.mean(dim=0)).T, upper=False)
        small = whitened if width <= len(means) else whitened.T
        eigenvalues = torch.linalg.eigvalsh(small @ small.T / (len(means) - 1)).clamp(min=0)
        all_of_them = torch.nn.functional.pad(eigenvalues, (0, width - len(eigenvalues)))
        shares = (all_of_them + EPSILON) / (all_of_them + EPSILON).sum()
        entropy: Tensor = torch.special.entr(shares).sum()
        return entropy.exp()


def _blocks(count: int) -> Tensor:
    """The block of each instance: consecutive ones apart, so that every block holds some of all of a sorted set."""
    return torch.arange(count) % min(count, BLOCKS)


VIEW_FORMULAS: MappingProxyType[str, Callable[[Tensor, Tensor], Estimate]] = MappingProxyType(
    {"lidar": lidar, "instance_snr": instance_snr, "alignment": alignment}
)
"""Functions of features and instances by name of the marker."""
