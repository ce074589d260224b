"""A recipe for a prior of your own images: a small U-Net trained as a rectified flow, minutes on a CPU up to 28 x 28.

Not for large images: take a pretrained network through ``DiffusersPrior`` there.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from geomonitor import _options
from geomonitor._random import preserved_rng
from geomonitor.errors import InputError
from geomonitor.explain.priors import FlowPrior, checked_range

SMALLEST_TIME = 0.05
"""The loss of the velocity equals the loss of the clean estimate divided by t^2: t near 0 would be all."""
AVERAGING = 0.995
"""Decay of the average of the weights, which is what is used: about the last 200 steps."""
RATE = 2e-3
GROUPS = 8
"""of the normalisation"""


def train_prior(
    images: Tensor,
    *,
    steps: int = 1000,
    batch: int = 128,
    width: int = 32,
    seed: int = 0,
    low: float = 0.0,
    high: float = 1.0,
    max_seconds: float | None = None,
    progress: Callable[[int, float], object] | None = None,
) -> FlowPrior:
    """Train a prior on images; the random streams of the caller stay as they are.

    Args:
        images: ``(n, C, H, W)``, even H and W, in [low, high]; of the data of the probe set, but none of its points.
        steps: of the optimiser; 1,000 steps at 14 x 14 take two minutes of one core.
        batch: images in a step.
        width: channels, a multiple of 8.
        seed: of weights and noise.
        low: smallest value of the data.
        high: largest value of the data.
        max_seconds: stop earlier, after this time.
        progress: called with the step and the loss.

    Returns:
        The prior; ``prior.network.state_dict()`` is what to save.

    Raises:
        InputError: no images, images out of the range, or options that do not make sense.
    """
    low, high = checked_range(low, high)
    _options.instance("images", images, Tensor, "a tensor (n, C, H, W)")
    if images.ndim != 4 or not images.is_floating_point() or any(side % 2 for side in images.shape[2:]):
        raise InputError(
            f"images must be floating numbers (n, C, H, W) with even H and W; got {images.dtype} {tuple(images.shape)}"
        )
    if not len(images) or not bool(torch.isfinite(images).all()):
        raise InputError("images must be one or more, and finite")
    if images.min() < low or images.max() > high:
        raise InputError(
            f"images must be in [low, high] = [{low:g}, {high:g}]; got {images.min():.3g} to {images.max():.3g}: scale "
            "them, or give their range"
        )
    steps, batch, width = (
        _options.whole(name, value) for name, value in (("steps", steps), ("batch", batch), ("width", width))
    )
    if width % GROUPS:
        raise InputError(f"width must be a multiple of {GROUPS}, such as 32; got {width}")
    limit = None if max_seconds is None else _options.POSITIVE.number("max_seconds", max_seconds)
    with preserved_rng(), torch.enable_grad():
        torch.manual_seed(_options.whole("seed", seed, least=0))
        network = SmallUNet(images.shape[1], width).to(images.device)
        average = torch.optim.swa_utils.AveragedModel(
            network,
            multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(AVERAGING),  # type: ignore[no-untyped-call]
        )
        optimizer = torch.optim.AdamW(network.parameters(), lr=RATE)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps)
        started = time.perf_counter()
        for step in range(steps):
            clean = images[torch.randint(len(images), (batch,), device=images.device)]
            t = torch.rand(batch, device=images.device)
            at = t.view(-1, 1, 1, 1)
            found = network((1 - at) * clean + at * torch.randn_like(clean), t)
            loss = ((found - clean) / at.clamp_min(SMALLEST_TIME)).square().mean()
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            average.update_parameters(network)
            if progress is not None:
                progress(step, loss.item())
            if limit is not None and time.perf_counter() - started > limit:
                break
        trained = average.module.eval()
    return small_prior(trained, images.shape[1:], low=low, high=high)


def small_prior(network: nn.Module, shape: torch.Size | tuple[int, ...], *, low: float, high: float) -> FlowPrior:
    """The prior of a trained ``SmallUNet``, for example of one that was loaded."""
    return FlowPrior(network, tuple(shape), predicts="x0", low=low, high=high)


class SmallUNet(nn.Module):
    """Two resolutions, two residual blocks at each; gives the clean image.

    Args:
        channels: of the images.
        width: channels at the first resolution; twice as many at the second.

    >>> SmallUNet(1, 8)(torch.zeros(2, 1, 14, 14), torch.rand(2)).shape
    torch.Size([2, 1, 14, 14])
    """

    def __init__(self, channels: int, width: int = 32) -> None:
        super().__init__()
        inside = 2 * width
        self.times = nn.Sequential(nn.Linear(_WAVES * 2, inside), nn.SiLU(), nn.Linear(inside, inside))
        self.enter = nn.Conv2d(channels, width, 3, padding=1)
        self.down = _Block(width, width, inside)
        self.shrink = nn.Conv2d(width, inside, 2, stride=2)
        self.middle = nn.ModuleList([_Block(inside, inside, inside), _Block(inside, inside, inside)])
        self.enlarge = nn.ConvTranspose2d(inside, width, 2, stride=2)
        self.up = _Block(2 * width, width, inside)
        self.leave = nn.Conv2d(width, channels, 3, padding=1)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        waves = t[:, None] * (2.0 ** torch.arange(_WAVES, device=t.device, dtype=t.dtype))
        time = self.times(torch.cat([waves.sin(), waves.cos()], dim=1).to(x.dtype))
        first = self.down(self.enter(x), time)
        below = self.shrink(first)
        for block in self.middle:
            below = block(below, time)
        clean: Tensor = self.leave(self.up(torch.cat([first, self.enlarge(below)], dim=1), time))
        return clean


_WAVES = 6


class _Block(nn.Module):
    def __init__(self, inner: int, outer: int, time: int) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.GroupNorm(GROUPS, inner), nn.SiLU(), nn.Conv2d(inner, outer, 3, padding=1))
        self.time = nn.Linear(time, outer)
        self.second = nn.Sequential(nn.GroupNorm(GROUPS, outer), nn.SiLU(), nn.Conv2d(outer, outer, 3, padding=1))
        self.skip = nn.Conv2d(inner, outer, 1) if inner != outer else nn.Identity()

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        inside = self.first(x) + self.time(time)[:, :, None, None]
        found: Tensor = self.skip(x) + self.second(inside)
        return found
