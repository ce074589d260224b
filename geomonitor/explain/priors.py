"""What a plausible input is: a generative model as a prior, of a network of your own or from ``diffusers``.

All of them are read through two numbers and one function: the forward process is ``x_t = alpha(t) x0 + sigma(t) e``
with noise ``e``, and ``x0(x_t, t)`` is the network's estimate of the clean input.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, Protocol, get_args, runtime_checkable

import torch
from torch import Tensor, nn

from geomonitor import _options
from geomonitor.errors import InputError
from geomonitor.measure.probe_pass import dtype_of, to_dtype

Predicts = Literal["velocity", "x0", "noise", "v"]
"""What a network gives: the flow's velocity ``e - x0``, the clean input, the noise ``e``, or ``alpha e - sigma x0``."""
SMALLEST_ALPHA = 1e-4
"""At pure noise (alpha = 0) the clean input cannot be had from the noise: the division stops here."""


@runtime_checkable
class Prior(Protocol):
    """A generative model of inputs, seen at times from 1 (noise) to 0 (data)."""

    shape: tuple[int, ...]
    """of one input, without the batch"""
    low: float
    high: float
    """range of the data: estimates are clipped to it"""

    def alpha(self, t: float) -> float:
        """Share of the data at time t."""

    def sigma(self, t: float) -> float:
        """Standard deviation of the noise at time t."""

    def x0(self, x: Tensor, t: float) -> Tensor:
        """Estimate of the clean inputs ``(B, *shape)``, differentiable in x."""

    def times(self, steps: int) -> list[float]:
        """``steps`` + 1 times in falling order; the last one is 0."""


def clean_estimate(prediction: Tensor, predicts: Predicts, x: Tensor, alpha: float, sigma: float) -> Tensor:
    r"""The clean input from what a network predicts.

    .. math:: x_0 = p \quad\text{or}\quad (x - \sigma p) / \alpha \quad\text{or}\quad
        (\alpha x - \sigma p) / (\alpha^2 + \sigma^2) \quad\text{or}\quad (x - \sigma p) / (\alpha + \sigma)

    for a network that gives the clean input, the noise, v, or the velocity.

    Args:
        prediction: p, ``(B, ...)``.
        predicts: which of them it is.
        x: the noisy input.
        alpha: share of the data at its time.
        sigma: standard deviation of the noise at its time.

    >>> x0, e = torch.tensor([2.0]), torch.tensor([-1.0])
    >>> x = 0.6 * x0 + 0.8 * e
    >>> given = {"x0": x0, "noise": e, "v": 0.6 * e - 0.8 * x0, "velocity": e - x0}
    >>> [round(clean_estimate(p, name, x, 0.6, 0.8).item(), 4) for name, p in given.items()]
    [2.0, 2.0, 2.0, 2.0]
    """
    if predicts == "x0":
        return prediction
    if predicts == "noise":
        return (x - sigma * prediction) / max(alpha, SMALLEST_ALPHA)
    if predicts == "v":
        return (alpha * x - sigma * prediction) / (alpha**2 + sigma**2)
    return (x - sigma * prediction) / (alpha + sigma)


class FlowPrior:
    """A rectified flow, or any network of ``(x, t)`` on its straight path ``x_t = (1 - t) x0 + t e``.

    Args:
        network: called as ``network(x, t)`` with ``x (B, *shape)`` and ``t (B,)``; gives ``(B, *shape)``.
        shape: of one input.
        predicts: what the network gives.
        zero: what the network means by its time 0: ``"noise"`` turns time and velocity around.
        low, high: range of the data.

    Raises:
        InputError: an option that does not make sense.

    >>> prior = FlowPrior(lambda x, t: torch.zeros_like(x), (3,), predicts="x0")
    >>> prior.alpha(0.25), prior.sigma(0.25), prior.times(2)
    (0.75, 0.25, [1.0, 0.5, 0.0])
    """

    def __init__(
        self,
        network: Callable[[Tensor, Tensor], Tensor],
        shape: Sequence[int],
        *,
        predicts: Predicts = "velocity",
        zero: Literal["data", "noise"] = "data",
        low: float = 0.0,
        high: float = 1.0,
    ) -> None:
        self.network = _options.function("network", network, "x, t")
        self.shape = checked_shape(shape)
        self.predicts: Any = _options.one_of("predicts", predicts, get_args(Predicts))
        self.zero = _options.one_of("zero", zero, ("data", "noise"))
        self.low, self.high = checked_range(low, high)

    def alpha(self, t: float) -> float:
        return 1.0 - t

    def sigma(self, t: float) -> float:
        return t

    def x0(self, x: Tensor, t: float) -> Tensor:
        turned = self.zero == "noise"
        given = to_dtype(x, precision_of(self.network))
        times = torch.full((len(x),), 1.0 - t if turned else t, device=x.device)  # half precision has too few digits
        prediction = self.network(given, times.to(torch.promote_types(given.dtype, torch.float32)))
        if turned and self.predicts == "velocity":
            prediction = -prediction
        return clean_estimate(same_shape(prediction, x), self.predicts, x, self.alpha(t), self.sigma(t))

    def times(self, steps: int) -> list[float]:
        return [1.0 - step / steps for step in range(steps)] + [0.0]


class DiffusionPrior:
    """A variance-preserving diffusion model: ``alpha^2 = alphas_cumprod``, ``sigma^2 = 1 - alpha^2``.

    Args:
        network: called as ``network(x, index)`` with ``index (B,)`` of type int64; gives ``(B, C, ...)``, or twice the
            channels if it also learned a variance, which is left out.
        shape: of one input.
        alphas_cumprod: of each index, falling.
        predicts: what the network gives: ``"noise"``, ``"v"`` or ``"x0"``.
        low, high: range of the data.

    Raises:
        InputError: an option that does not make sense.
    """

    def __init__(
        self,
        network: Callable[[Tensor, Tensor], Any],
        shape: Sequence[int],
        alphas_cumprod: Sequence[float] | Tensor,
        *,
        predicts: Predicts = "noise",
        low: float = -1.0,
        high: float = 1.0,
    ) -> None:
        self.network = _options.function("network", network, "x, index")
        self.shape = checked_shape(shape)
        table = torch.as_tensor(alphas_cumprod, dtype=torch.float64).cpu()
        if table.ndim != 1 or len(table) < 2 or not bool(((table >= 0) & (table <= 1)).all()):
            raise InputError(f"alphas_cumprod must be numbers in [0, 1], one an index; got shape {tuple(table.shape)}")
        self._table = table.tolist()
        self.predicts: Any = _options.one_of("predicts", predicts, ("noise", "v", "x0"))
        self.low, self.high = checked_range(low, high)

    def _index(self, t: float) -> int:
        return round(t * (len(self._table) - 1))

    def alpha(self, t: float) -> float:
        return float(self._table[self._index(t)] ** 0.5) if t > 0 else 1.0  # after the last step: the data

    def sigma(self, t: float) -> float:
        return float((1 - self._table[self._index(t)]) ** 0.5) if t > 0 else 0.0

    def x0(self, x: Tensor, t: float) -> Tensor:
        index = torch.full((len(x),), self._index(t), dtype=torch.int64, device=x.device)
        prediction = self.network(to_dtype(x, precision_of(self.network)), index)
        prediction = getattr(prediction, "sample", prediction)  # of diffusers
        if isinstance(prediction, Tensor) and prediction.ndim > 1 and prediction.shape[1] == 2 * x.shape[1]:
            prediction = prediction[:, : x.shape[1]]
        return clean_estimate(same_shape(prediction, x), self.predicts, x, self.alpha(t), self.sigma(t))

    def times(self, steps: int) -> list[float]:
        """Of strided indices; fewer steps than asked for if there are not as many indices."""
        last = len(self._table) - 1
        indices = sorted({round((1 - step / steps) * last) for step in range(steps)} - {0}, reverse=True)
        return [index / last for index in indices] + [0.0]


def DiffusersPrior(unet: Any, scheduler: Any, *, low: float = -1.0, high: float = 1.0) -> Prior:  # noqa: N802
    """The prior of a ``diffusers`` UNet and scheduler; of the scheduler only its table is read.

    Args:
        unet: a ``UNet2DModel``, or another network of ``(x, timestep)`` with ``config.sample_size`` and
            ``config.in_channels``.
        scheduler: with ``alphas_cumprod`` and ``config.prediction_type`` "epsilon", "v_prediction" or "sample"; or a
            ``FlowMatchEulerDiscreteScheduler``, whose networks give the velocity ``e - x0`` at timestep 1000 t.
        low: smallest value of the data that it was trained on.
        high: largest one.

    Raises:
        InputError: another scheduler or network.
    """
    config = getattr(unet, "config", None)
    size, channels = getattr(config, "sample_size", None), getattr(config, "in_channels", None)
    if size is None or channels is None:
        raise InputError(
            f"unet must be a diffusers network with config.sample_size and config.in_channels, such as a UNet2DModel; "
            f"got {type(unet).__name__}: use FlowPrior or DiffusionPrior for a network of your own"
        )
    shape = (channels, *((size, size) if isinstance(size, int) else size))
    kind = getattr(getattr(scheduler, "config", None), "prediction_type", "epsilon")
    table = getattr(scheduler, "alphas_cumprod", None)
    names: dict[str, Predicts] = {"epsilon": "noise", "v_prediction": "v", "sample": "x0"}
    if table is not None and kind in names:
        return DiffusionPrior(_Sample(unet, 1), shape, table, predicts=names[kind], low=low, high=high)
    if "FlowMatchEuler" in type(scheduler).__name__:
        return FlowPrior(_Sample(unet, 1000), shape, low=low, high=high)
    raise InputError(
        "scheduler must have alphas_cumprod and prediction_type 'epsilon', 'v_prediction' or 'sample' (DDPM, DDIM), or "
        f"be a FlowMatchEulerDiscreteScheduler; got {type(scheduler).__name__} with {kind!r}"
    )


class _Sample(nn.Module):
    """The tensor in the output object of a diffusers network."""

    def __init__(self, unet: Any, per_time: int) -> None:
        super().__init__()
        self.unet, self.per_time = unet, per_time

    def forward(self, x: Tensor, t: Tensor) -> Any:
        found = self.unet(x, t * self.per_time)
        return getattr(found, "sample", found)


def precision_of(network: Any) -> torch.dtype | None:
    """What the network of a prior computes in, if it is a module with weights."""
    return dtype_of(network) if isinstance(network, nn.Module) else None


def same_shape(prediction: Any, x: Tensor) -> Tensor:
    """What a network gave, in the precision of the state, if it is of the shape of its input.

    Raises:
        InputError: something else.
    """
    if not isinstance(prediction, Tensor) or prediction.shape != x.shape:
        found = tuple(prediction.shape) if isinstance(prediction, Tensor) else type(prediction).__name__
        raise InputError(f"the prior's network must give a tensor of shape {tuple(x.shape)}, as its input; got {found}")
    return prediction.to(x.dtype)


def checked_shape(shape: Any) -> tuple[int, ...]:
    """A shape of one input.

    Raises:
        InputError: anything else.
    """
    if not isinstance(shape, Sequence) or isinstance(shape, (str, bytes)) or not shape:
        raise InputError(f"shape must be the shape of one input, such as (1, 28, 28); got {shape!r}")
    return tuple(_options.whole("shape", length) for length in shape)


def checked_range(low: Any, high: Any) -> tuple[float, float]:
    """The range of the data.

    Raises:
        InputError: not two numbers in rising order.
    """
    anything = _options.Range(-torch.inf, torch.inf, ends="[]")
    low, high = anything.number("low", low), anything.number("high", high)
    if low >= high:
        raise InputError(f"low must be below high, the range of the data; got {low} and {high}")
    return low, high
