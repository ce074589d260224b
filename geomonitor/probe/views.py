"""Views of an item: what a self-supervised training takes for the same thing, drawn anew, and always the same ones."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from geomonitor import _options
from geomonitor._random import preserved_rng
from geomonitor.errors import InputError
from geomonitor.probe.apart import read
from geomonitor.probe.choice import SEED
from geomonitor.probe.label_key import LabelKey, label_places, split_label

CROP_AREA = (0.5, 1.0)
"""Share of the area of an image that a crop keeps."""
MASKED = 0.15
"""Share of the tokens that are masked: that of BERT."""
WINDOW = (0.5, 0.9)
"""Share of a sequence that a window keeps."""
FIXED_WINDOW = 0.7
"""The same of sequences without a mask, whose batch needs one length."""
NOISE = 0.05
"""Standard deviation of the noise, in those of each input column."""
KINDS = ("crop", "mask", "window", "dropout", "noise")


@dataclass(frozen=True)
class Views:
    """How views of an item are made.

    Args:
        kind: the training's own random transform, a function of the item without its label (always prefer it); or
            ``"crop"`` (images: half to all of the area, mirrored or not), ``"mask"`` (15 % of the tokens become
            ``mask_token``, or are deleted without one), ``"window"`` (a contiguous part of a sequence), ``"dropout"``
            (the model's ``nn.Dropout`` layers drop, all else stays in evaluation mode), ``"noise"`` (Gaussian, 0.05 of
            the standard deviation of each input column: a last resort).
        count: views ``V`` of each item, two or more.
        seed: of the draws; a view depends on it, on the item and on its number alone.
        mask_token: id of the mask token, for ``"mask"``.
        special_tokens: ids of tokens that are never masked, for ``"mask"``.

    Raises:
        InputError: an unknown kind, or a value of the wrong type or range.

    >>> Views("crop", count=4)
    Views(kind='crop', count=4, seed=0, mask_token=None, special_tokens=())
    """

    kind: str | Callable[[Any], Any]
    count: int = 10
    seed: int = 0
    mask_token: int | None = None
    special_tokens: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.special_tokens, (tuple, list)):
            raise InputError(
                f"special_tokens is a tuple of ids of tokens, such as (0, 101); got {self.special_tokens!r}"
            )
        if callable(self.kind):
            _options.function("kind", self.kind, "item")
        else:
            _options.one_of("kind", self.kind, KINDS)
        checked = {
            "count": _options.whole("count", self.count, least=2),
            "seed": int(SEED.number("seed", self.seed)),
            "mask_token": _options.whole_or_none("mask_token", self.mask_token, least=0),
            "special_tokens": tuple(_options.whole("special_tokens", t, least=0) for t in self.special_tokens),
        }
        for name, value in checked.items():
            object.__setattr__(self, name, value)

    @classmethod
    def of(cls, given: Any) -> Views | None:
        """Views as they are, or of a kind or a function; None stays.

        Raises:
            InputError: anything else.
        """
        if given is None or isinstance(given, Views):
            return given
        if isinstance(given, str) or callable(given):
            return cls(given)
        raise InputError(f"views takes gm.Views, a function of an item, or one of {', '.join(KINDS)}; got {given!r}")

    def as_protocol(self) -> dict[str, Any]:
        """Plain values: two kinds are two protocols. Of a function its name; what it does, the content shows."""
        name = self.kind if isinstance(self.kind, str) else getattr(self.kind, "__qualname__", type(self.kind).__name__)
        tokens = {"mask_token": self.mask_token, "special_tokens": list(self.special_tokens)}
        return {"kind": name, "count": self.count, "seed": self.seed, **(tokens if self.kind == "mask" else {})}


def seed_of(*parts: int) -> int:
    """A seed of 63 bits from whole numbers; the same on every platform.

    >>> seed_of(0, 1, 2) == seed_of(0, 1, 2), seed_of(0, 1, 2) == seed_of(0, 2, 1)
    (True, False)
    """
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "little") >> 1


class ViewedDataset:
    """``P V`` items: all views of the first item, then of the second one.

    Args:
        dataset: map-style.
        indices: of the items in it.
        names: what seeds the views of each item: its index in the dataset at the bottom.
        views: how views are made.
        label_key: place of the label, which a view does not get.
    """

    def __init__(
        self, dataset: Any, indices: Sequence[int], names: Sequence[int], views: Views, label_key: LabelKey
    ) -> None:
        self.dataset, self.views, self.label_key = dataset, views, label_key
        self.indices, self.names = tuple(indices), tuple(names)
        self._view = self._made()

    def __len__(self) -> int:
        return len(self.indices) * self.views.count

    def __getitem__(self, place: int) -> Any:
        number, view = divmod(int(place), self.views.count)
        item = self.dataset[self.indices[number]]
        with preserved_rng(seed_of(self.views.seed, self.names[number], view)):
            inputs = split_label(item, self.label_key)[0]
            try:
                return _with_inputs(item, self._view(inputs), self.label_key)
            except InputError:
                raise
            except Exception as error:
                raise InputError(
                    f"the views cannot be made of an item of {type(self.dataset).__name__}, whose input is a "
                    f"{type(inputs).__name__}: {type(error).__name__}: {error}. views takes a function of one item "
                    "without its label and without a batch dimension"
                ) from error

    def _made(self) -> Callable[[Any], Any]:
        kind = self.views.kind
        if callable(kind):
            return kind
        if kind == "mask":
            return partial(_masked, token=self.views.mask_token, special=self.views.special_tokens)
        if kind == "noise":
            return partial(_noisy, scales=self._scales())
        return {"crop": _cropped, "window": _window, "dropout": lambda inputs: inputs}[kind]

    def _scales(self) -> dict[Any, Tensor]:
        def floats(dataset: Any) -> Iterator[dict[Any, Tensor]]:
            return (_floats(split_label(dataset[index], self.label_key)[0]) for index in self.indices)

        found = list(read(floats, self.dataset))
        if not found or not found[0]:
            raise InputError('views="noise" needs float tensors among the inputs; give a function, or another kind')
        return {key: torch.stack([each[key] for each in found]).std(dim=0, correction=0) for key in found[0]}


def _with_inputs(item: Any, inputs: Any, label_key: LabelKey) -> Any:
    """An item with other inputs, and its label in its place, as a collate function knows it."""
    if isinstance(item, Mapping):
        return {**item, **inputs} if isinstance(inputs, Mapping) else inputs
    if not isinstance(item, (tuple, list)):
        return inputs
    places = sorted(place % max(len(item), 2) for place in label_places(item, label_key))
    if places[0] >= len(item):
        return (inputs,)
    parts = list(inputs) if len(item) - len(places) > 1 else [inputs]
    for place in places:
        parts.insert(place, item[place])
    return tuple(parts)


def _floats(inputs: Any) -> dict[Any, Tensor]:
    """Float tensors among the inputs, by place."""
    parts: Any = {None: inputs}
    if isinstance(inputs, Mapping):
        parts = inputs
    elif isinstance(inputs, (tuple, list)):
        parts = dict(enumerate(inputs))
    return {key: part for key, part in parts.items() if isinstance(part, Tensor) and part.is_floating_point()}


def _replaced(inputs: Any, changed: Mapping[Any, Any]) -> Any:
    if isinstance(inputs, Mapping):
        return {**inputs, **changed}
    if isinstance(inputs, (tuple, list)):
        return tuple(changed.get(place, part) for place, part in enumerate(inputs))
    return changed[None]


def _noisy(inputs: Any, scales: Mapping[Any, Tensor]) -> Any:
    found = _floats(inputs)
    return _replaced(inputs, {key: part + NOISE * scales[key] * torch.randn_like(part) for key, part in found.items()})


def _cropped(inputs: Any) -> Any:
    images = {key: part for key, part in _floats(inputs).items() if part.ndim == 3}
    if not images:
        raise InputError('views="crop" needs float images (C, H, W) among the inputs; give a function, or another kind')
    key, image = next(iter(images.items()))
    low, high = CROP_AREA
    side = float(low + (high - low) * torch.rand(())) ** 0.5
    height, width = (max(1, round(side * size)) for size in image.shape[1:])
    top = int(torch.randint(image.shape[1] - height + 1, ()))
    left = int(torch.randint(image.shape[2] - width + 1, ()))
    part = image[None, :, top : top + height, left : left + width]
    whole = functional.interpolate(part, size=image.shape[1:], mode="bilinear", align_corners=False)[0]
    return _replaced(inputs, {key: whole.flip(2) if bool(torch.rand(()) < 0.5) else whole})


def _tokens(inputs: Any) -> tuple[Any, Tensor, Tensor | None]:
    """Place, ids ``(L,)`` and mask of the tokens among the inputs; the ids may be a list."""
    ids = inputs.get("input_ids") if isinstance(inputs, Mapping) else inputs
    if isinstance(ids, list) and all(isinstance(token, int) for token in ids):
        ids = torch.tensor(ids)
    if not isinstance(ids, Tensor) or ids.ndim != 1 or ids.is_floating_point() or not len(ids):
        raise InputError('views="mask" needs token ids (L,), alone or as input_ids; give a function, or another kind')
    mask = inputs.get("attention_mask") if isinstance(inputs, Mapping) else None
    return ("input_ids" if isinstance(inputs, Mapping) else None), ids, None if mask is None else torch.as_tensor(mask)


def _masked(inputs: Any, token: int | None, special: Sequence[int]) -> Any:
    key, ids, mask = _tokens(inputs)
    usual = ~torch.isin(ids, torch.tensor(special, dtype=ids.dtype))
    places = torch.nonzero(usual if mask is None else usual & mask.bool())[:, 0]
    chosen = places[torch.randperm(len(places))[: max(1, round(MASKED * len(places)))]]
    if token is not None:
        ids = ids.clone()
        ids[chosen] = token
        return _replaced(inputs, {key: ids})
    kept = torch.ones(len(ids), dtype=torch.bool)
    kept[chosen] = False
    return _kept_tokens(inputs, key, ids, mask, kept)


def _kept_tokens(inputs: Any, key: Any, ids: Tensor, mask: Tensor | None, kept: Tensor) -> Any:
    """The kept tokens; with a mask, padded at the end to the length they had."""
    if mask is None:
        return _replaced(inputs, {key: ids[kept]})
    kept = kept & mask.bool()
    lost = len(ids) - int(kept.sum())
    padding = ids[~mask.bool()][0] if not bool(mask.bool().all()) else ids.new_zeros(())
    shorter = torch.cat([ids[kept], padding.expand(lost)])
    return _replaced(inputs, {key: shorter, "attention_mask": torch.cat([mask[kept], mask.new_zeros(lost)])})


def _window(inputs: Any) -> Any:
    floats = _floats(inputs)
    if floats:  # audio or a series: time is the last dimension of (L,) and (C, L)
        key, series = next(iter(floats.items()))
        length = max(1, round(FIXED_WINDOW * series.shape[-1]))
        start = int(torch.randint(series.shape[-1] - length + 1, ()))
        return _replaced(inputs, {key: series[..., start : start + length]})
    key, ids, mask = _tokens(inputs)
    places = torch.arange(len(ids)) if mask is None else torch.nonzero(mask)[:, 0]
    low, high = WINDOW
    share = FIXED_WINDOW if mask is None else float(low + (high - low) * torch.rand(()))
    length = max(1, round(share * len(places)))
    start = int(torch.randint(len(places) - length + 1, ()))
    kept = torch.zeros(len(ids), dtype=torch.bool)
    kept[places[start : start + length]] = True
    return _kept_tokens(inputs, key, ids, mask, kept)
