"""What the collapsed network of mnist_collapse.py no longer sees: fibers before the fault and at the end of the run.

Trains the network with the fault, a small prior on images that are no probe points, and draws inputs that the
penultimate layer maps to the features of the same digit, before and after.

    python examples/fibers_mnist.py        # minutes on one core; writes runs/fibers_mnist/fibers.png
"""

from __future__ import annotations

import argparse
import copy
import logging
import time
import warnings
from pathlib import Path
from typing import NamedTuple

import lightning as L
import torch
from mnist_collapse import EPOCHS, FAULT_EPOCH, Data, DigitNet, load_data
from torch import Tensor
from torch.utils.data import DataLoader

import geomonitor as gm
from geomonitor.explain import FlowPrior, compare_fibers, layer_features, train_prior
from geomonitor.plots.fibers import plot_fibers


class Networks(NamedTuple):
    """One run: its weights before the fault would come, and at its end."""

    before: dict[str, Tensor]
    end: dict[str, Tensor]
    accuracy: float
    """on the held-out images, at the end"""


class _Before(L.Callback):
    def on_train_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if trainer.current_epoch == FAULT_EPOCH - 1:
            self.weights = copy.deepcopy(module.state_dict())


def train(data: Data, seed: int, *, faulty: bool) -> Networks:
    """A run without the monitor."""
    L.seed_everything(seed, verbose=False)
    before = _Before()
    trainer = L.Trainer(
        max_epochs=EPOCHS, callbacks=[before], logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, accelerator="cpu",
    )  # fmt: skip
    model = DigitNet(faulty)
    trainer.fit(model, DataLoader(data.train, batch_size=64, shuffle=True))
    images, labels = next(iter(DataLoader(data.held_out, batch_size=len(data.held_out))))
    with torch.no_grad():
        accuracy = (model.eval()(images).argmax(dim=1) == labels).float().mean().item()
    return Networks(before.weights, copy.deepcopy(model.state_dict()), accuracy)


def prior_images(data: Data) -> Tensor:
    """The training images and the unseen digits: no point of the probe set is among them."""
    training = torch.stack([item[0] for item in data.train])
    return torch.cat([training, data.unseen_images])


def probe_images(data: Data, seed: int = 0, per_class: int = 50) -> tuple[Tensor, Tensor]:
    """Images and labels of the probe set, class by class."""
    probe = gm.ProbeSet.from_dataset(data.held_out, per_class=per_class, train=data.train, seed=seed)
    batch = probe.batch_of(torch.arange(len(probe)))
    return batch.inputs, batch.labels


def places_of(labels: Tensor, per_class: int) -> Tensor:
    """The first points of each class."""
    return torch.cat([(labels == label).nonzero().flatten()[:per_class] for label in labels.unique()])


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("runs/fibers_mnist"), help="folder of the picture")
    parser.add_argument("--prior-steps", type=int, default=1_000)
    parser.add_argument("--per-class", type=int, default=2)
    parser.add_argument("--samples", type=int, default=4)
    options = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", ".*(does not have many workers|GPU available|LeafSpec|val_dataloader).*")
    started = time.perf_counter()
    data = load_data()
    networks = train(data, 0, faulty=True)
    print(f"Network trained, validation accuracy {networks.accuracy:.3f}: {time.perf_counter() - started:.0f} s")
    prior: FlowPrior = train_prior(prior_images(data), steps=options.prior_steps)
    print(f"Prior trained: {time.perf_counter() - started:.0f} s")
    images, labels = probe_images(data)
    model = DigitNet(faulty=False)
    with (
        layer_features(model, weights=networks.before) as before,
        layer_features(model, weights=networks.end) as after,
    ):
        found = compare_fibers(
            before, after, prior, images, places_of(labels, options.per_class), strengths=(3.0, 10.0),
            per_input=options.samples,
        )  # fmt: skip
    options.output.mkdir(parents=True, exist_ok=True)
    figure = plot_fibers(found)
    figure.savefig(options.output / "fibers.png", dpi=110)
    for name, estimate in found.markers.items():
        print(f"  {name:32} {estimate.value:8.4f} ± {estimate.standard_error:.4f}")
    print(found.sentence)
    print(f"{options.output / 'fibers.png'}: {time.perf_counter() - started:.0f} s in all")


if __name__ == "__main__":
    main()
