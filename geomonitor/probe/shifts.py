"""Shifts of the input under which the accuracy is measured again, since the geometry does not cover corruptions.

The built-in ones change float images ``(B, C, H, W)`` by amounts that are relative to each image, so that they mean the
same whatever normalisation the images have. Each costs one more forward pass of the probe set.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional

from geomonitor import _options
from geomonitor.errors import InputError

SHIFT_MARKER = "accuracy_under_"
"""Prefix of the marker of a shift."""

NOISE = 0.5
"""Standard deviation of the noise, in standard deviations of the image."""
BLUR = 1 / 32
"""Standard deviation of the blur in heights of the image, at least one pixel."""
BRIGHTNESS = 1.0
"""What is added to every pixel, in standard deviations of the image."""
CONTRAST = 0.5
"""Factor on the distance of a pixel from the mean of the image."""
ROTATION = 20.0
"""Degrees."""

Shift: TypeAlias = Callable[[Any], Any]


def shifted(name: str, shift: Shift | None, inputs: Any, ids: Tensor) -> Any:
    """One batch of inputs under a shift.

    Args:
        name: of the shift.
        shift: a user's function of the whole batch of inputs; None for the built-in one of this name, which changes
            the images among the inputs.
        inputs: a batch as the model gets it.
        ids: ``(B,)`` ids of the points: the noise on a point depends on its id alone.

    Raises:
        InputError: a built-in shift without float images ``(B, C, H, W)`` among the inputs.
    """
    if shift is not None:
        return shift(inputs)
    images = _images(inputs)
    if images is None:
        raise InputError(
            f"the shift {name!r} needs float images (B, C, H, W) among the inputs; got {_told(inputs)}. "
            "Give a function of the inputs instead: shifts={'name': function}."
        )
    place, found = images
    changed = BUILT_IN[name](found, ids)
    if isinstance(inputs, Mapping):
        return {**inputs, place: changed}
    if isinstance(inputs, (tuple, list)):
        return tuple(changed if i == place else value for i, value in enumerate(inputs))
    return changed


def named_shifts(shifts: Sequence[str] | Mapping[str, Shift]) -> dict[str, Shift | None]:
    """Name to function, None for a built-in one.

    Raises:
        InputError: a name that is no built-in shift.
    """
    if isinstance(shifts, Mapping):
        for name, shift in shifts.items():
            if not isinstance(name, str) or not name or "/" in name:
                raise InputError(f"the name of a shift is a word without '/', such as 'fog'; got {name!r}")
            if shift is not None or name not in BUILT_IN:
                _options.function(f"shifts[{name!r}]", shift, "inputs")
        return dict(shifts)
    shifts = _options.names("shifts", shifts, "'noise'")
    unknown = [name for name in shifts if name not in BUILT_IN]
    if unknown:
        raise InputError(f"built-in shifts are {', '.join(BUILT_IN)}; got {unknown}. Others: a dict name -> function")
    return dict.fromkeys(shifts)


def _noise(images: Tensor, ids: Tensor) -> Tensor:
    # One stream a point: the same noise in any batch split and on any number of processes.
    streams = [torch.Generator().manual_seed(int(i)) for i in ids.tolist()]
    drawn = [torch.randn(images.shape[1:], generator=stream) for stream in streams]
    drawn += [torch.zeros(images.shape[1:])] * (len(images) - len(drawn))  # borrowed inputs have no id
    return images + NOISE * _deviation(images) * torch.stack(drawn).to(images)


def _blur(images: Tensor, ids: Tensor) -> Tensor:
    sigma = max(1.0, BLUR * images.shape[2])
    reach = min(math.ceil(2 * sigma), min(images.shape[2:]) - 1)
    offsets = torch.arange(-reach, reach + 1, dtype=images.dtype, device=images.device)
    kernel = torch.exp(-(offsets**2) / (2 * sigma**2))
    kernel = (kernel / kernel.sum()).repeat(images.shape[1], 1, 1, 1)
    padded = functional.pad(images, (reach,) * 4, mode="replicate")
    across = functional.conv2d(padded, kernel, groups=images.shape[1])
    return functional.conv2d(across, kernel.transpose(2, 3), groups=images.shape[1])


def _brightness(images: Tensor, ids: Tensor) -> Tensor:
    return images + BRIGHTNESS * _deviation(images)


def _contrast(images: Tensor, ids: Tensor) -> Tensor:
    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    return mean + CONTRAST * (images - mean)


def _rotation(images: Tensor, ids: Tensor) -> Tensor:
    angle = math.radians(ROTATION)
    height, width = images.shape[2:]
    turn = torch.tensor(
        [
            [math.cos(angle), -math.sin(angle) * height / width, 0],
            [math.sin(angle) * width / height, math.cos(angle), 0],
        ],
        dtype=images.dtype,
        device=images.device,
    )
    grid = functional.affine_grid(turn.expand(len(images), 2, 3), list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, padding_mode="border", align_corners=False)


BUILT_IN: MappingProxyType[str, Callable[[Tensor, Tensor], Tensor]] = MappingProxyType(
    {"noise": _noise, "blur": _blur, "brightness": _brightness, "contrast": _contrast, "rotation": _rotation}
)
"""Built-in shifts: functions of images ``(B, C, H, W)`` and ids of points ``(B,)``."""


def _deviation(images: Tensor) -> Tensor:
    return images.std(dim=(1, 2, 3), keepdim=True, correction=0)


def _images(inputs: Any) -> tuple[Any, Tensor] | None:
    if isinstance(inputs, Tensor):
        places: Any = [(None, inputs)]
    elif isinstance(inputs, Mapping):
        places = inputs.items()
    else:
        places = enumerate(inputs) if isinstance(inputs, (tuple, list)) else []
    found = ((k, v) for k, v in places if isinstance(v, Tensor) and v.ndim == 4 and v.is_floating_point())
    return next(found, None)


def _told(inputs: Any) -> str:
    if isinstance(inputs, Tensor):
        return f"{inputs.dtype} of shape {tuple(inputs.shape)}"
    if isinstance(inputs, Mapping):
        return f"a mapping with {', '.join(map(str, inputs))}"
    return type(inputs).__name__
