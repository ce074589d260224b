"""One run: trained by a recipe, measured after each epoch, or more often, by the monitor and against the truth."""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

import geomonitor as gm
from benchmarks.early_warning.families import EPOCHS, Recipe
from benchmarks.early_warning.tasks import (
    EPOCH_POINTS,
    Network,
    Task,
    build_network,
    corrupt_bytes,
    load_task,
)
from benchmarks.early_warning.trajectories import CHECKS
from benchmarks.early_warning.truth import CHECKED, measure_truth
from geomonitor.alarms.panel import DEFAULT_WATCH

MARKERS = (
    *("capacity", "dimension", "radius", "utility"),
    *("participation_ratio", "numerical_rank", "effective_rank", "stable_rank", "rankme"),
    *("participation_ratio_per_class", "nc1", "cdnv", "nc2_equinorm", "nc2_equiangular", "nc3", "nc4"),
    *("within_class_distance", "active_fraction", "dead_units", "mean_covariance", "mean_norm"),
    *("intrinsic_dimension", "drift", "accuracy", "entropy"),
)
CHECKED_MARKERS = (*DEFAULT_WATCH, "rankme", "nc1")
"""Measured several times an epoch: what is watched by default, and by others."""
PER_CLASS, DIRECTIONS = 50, 200
"""The defaults of the monitor."""
MOMENTUM = 0.9
REMAINING_CLASSES = 2
"""Classes that "forgetting" goes on with."""
LEAK = 2.0
"""Brightness of the pixel that tells the label; images lie in [0, 1]."""


Row = dict[str, float]


def run(recipe: Recipe, epochs: int = EPOCHS) -> Iterator[Row]:
    """Train and measure: one row of numbers for each epoch; fewer ``epochs`` give the first rows of the whole run."""
    for _, of_epoch in run_finely(recipe, epochs, checks=0):
        assert of_epoch is not None
        yield of_epoch


def run_finely(recipe: Recipe, epochs: int = EPOCHS, checks: int = CHECKS) -> Iterator[tuple[Row, Row | None]]:
    """The same run, measured ``checks`` times an epoch, too: a row for each time, and the row of each epoch at its end.

    A measurement changes nothing in the run: the rows of epochs are those of :func:`run`.
    """
    torch.manual_seed(recipe.stream)
    task = load_task(recipe.task, recipe.stream)
    probe = gm.ProbeSet.from_dataset(task.probe, per_class=PER_CLASS)
    trainer = Trainer(recipe, task)
    each_epoch, each_check = (
        gm.GeometryMonitor(probe, markers=markers, panel=None, geometry={"directions": DIRECTIONS})
        for markers in (MARKERS, CHECKED_MARKERS)
    )
    for epoch in range(epochs):
        parts = max(checks, 1)
        for part, told in enumerate(trainer.train_epoch(epoch, parts), start=1):
            moment = {"epoch": epoch + part / parts - 1, "step": trainer.step}
            truth = measure_truth(trainer.model, task, whole=part == parts) | trainer.leaking_validation(epoch)
            row, of_epoch = {}, None
            if checks:
                checked = {name: truth[name] for name in CHECKED}
                row = moment | told | checked | _geometry(each_check, trainer, epoch)
            if part == parts:
                of_epoch = moment | trainer.told() | truth | _geometry(each_epoch, trainer, epoch)
            yield row, of_epoch


def _geometry(monitor: gm.GeometryMonitor, trainer: Trainer, epoch: int) -> Row:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", gm.GeomonitorWarning)  # a dead network has undefined markers: NaN says it
        records = monitor.measure(trainer.model, step=trainer.step, epoch=epoch)
    geometry = {}
    for record in records:
        if record.marker in MARKERS:
            geometry[record.marker] = record.value
            if gm.MARKERS[record.marker].state == "manifolds":
                geometry[f"{record.marker}_standard_error"] = record.standard_error
                geometry[f"{record.marker}_change_error"] = record.change_error
    return geometry


class Batch(NamedTuple):
    """What people watch of a step."""

    loss: float
    right: int
    size: int
    gradient_norm: float


class Trainer:
    """A plain training loop, with the fault of the recipe."""

    def __init__(self, recipe: Recipe, task: Task) -> None:
        self.recipe, self.task = recipe, task
        self.draw = torch.Generator().manual_seed(recipe.stream + 1)
        self.model, self.optimizer = self._fresh()
        self.frozen: nn.Module | None = None
        self.step = 0
        self.seen: list[Batch] = []
        """of the current epoch"""

    def faulty(self, epoch: int) -> bool:
        return self.recipe.onset is not None and epoch >= self.recipe.onset

    def train_epoch(self, epoch: int, parts: int = 1) -> Iterator[Row]:
        """Train; after each of so many parts yields what people watch of it, see :meth:`told`."""
        recipe = self.recipe
        if epoch == recipe.resume_epoch:
            self._resume()
        if epoch == recipe.onset and recipe.fault == "broken_resume":
            self._resume()
            self._break()
        if epoch == recipe.onset and recipe.fault == "weight_decay":
            self.optimizer.param_groups[0]["weight_decay"] = recipe.size
        group = self.optimizer.param_groups[0]
        self.seen, told = [], 0
        batches = list(self._batches(epoch))
        ends = [round(len(batches) * part / parts) for part in range(1, parts + 1)]
        for position, (inputs, labels) in batches:
            self.model.train()
            group["lr"] = recipe.lr * self._rate(epoch, position)
            logits = self.model(inputs)
            loss = nn.functional.cross_entropy(logits, labels, label_smoothing=recipe.label_smoothing)
            watched, right = float(loss.detach()), int((logits.argmax(1) == labels).sum())
            if recipe.fault == "narrowing" and self.faulty(epoch):
                loss = loss + recipe.size * outside_share(self.model.body(inputs), int(recipe.variant[0]))
            self.optimizer.zero_grad()
            loss.backward()
            norm = float(nn.utils.get_total_norm([p.grad for p in self.model.parameters() if p.grad is not None]))
            self.seen.append(Batch(watched, right, len(labels), norm))
            if self.frozen is not None:
                for parameter in self.frozen.parameters():
                    parameter.grad = None
            if math.isfinite(norm):  # a step that overflows is left out, as under mixed precision
                self.optimizer.step()
            self.step += 1
            if len(self.seen) in ends:
                yield self.told(told)
                told = len(self.seen)

    def told(self, first: int = 0) -> Row:
        """Losses, accuracy, gradient norm, learning rate, weight decay: of this epoch from a batch on."""
        batches, group = self.seen[first:], self.optimizer.param_groups[0]
        return {
            "train_loss": sum(batch.loss for batch in batches) / len(batches),
            "train_accuracy": sum(batch.right for batch in batches) / sum(batch.size for batch in batches),
            "max_batch_loss": max(batch.loss for batch in batches),
            "gradient_norm": sum(batch.gradient_norm for batch in batches) / len(batches),
            "lr": group["lr"],
            "weight_decay": group["weight_decay"],
        }

    @torch.no_grad()
    def leaking_validation(self, epoch: int) -> Row:
        """What the team sees where the label leaks into the validation, too; nothing otherwise."""
        if self.recipe.variant != "train and validation" or not self.faulty(epoch):
            return {}
        inputs, labels = self.task.validation
        self.model.eval()
        logits = self.model(leak(inputs, labels, torch.ones(len(labels), dtype=torch.bool)))
        return {
            "val_loss": float(nn.functional.cross_entropy(logits, labels)),
            "val_accuracy": float((logits.argmax(1) == labels).double().mean()),
        }

    def _fresh(self) -> tuple[Network, torch.optim.Optimizer]:
        recipe = self.recipe
        model = build_network(recipe.task, dropout=recipe.dropout, batch_norm=recipe.batch_norm)
        if recipe.optimizer == "sgd":
            return model, torch.optim.SGD(
                model.parameters(), lr=recipe.lr, momentum=MOMENTUM, weight_decay=recipe.weight_decay
            )
        return model, torch.optim.AdamW(model.parameters(), lr=recipe.lr, weight_decay=recipe.weight_decay)

    def _resume(self) -> None:
        """Save, build everything anew, load; the order of the batches starts afresh, as it mostly does."""
        file = io.BytesIO()
        torch.save([self.model.state_dict(), self.optimizer.state_dict()], file)
        file.seek(0)
        weights, state = torch.load(file, weights_only=True)
        self.model, self.optimizer = self._fresh()
        self.model.load_state_dict(weights)
        self.optimizer.load_state_dict(state)
        self.draw.manual_seed(self.recipe.stream + 2)

    @torch.no_grad()
    def _break(self) -> None:
        """What a resume may do wrong: a layer that is not loaded and stays frozen, or the optimiser's state."""
        layer = [m for m in self.model.body.modules() if isinstance(m, nn.Linear)][-1]
        if self.recipe.variant == "reinitialised":
            layer.reset_parameters()
            self.frozen = layer
        elif self.recipe.variant == "zeroed":  # a part of the units
            dead = torch.rand(layer.out_features, generator=self.draw) < self.recipe.size
            layer.weight[dead] = 0
            layer.bias[dead] = 0
            self.frozen = layer
        else:  # momentum with the wrong sign and size
            for state in self.optimizer.state.values():
                for name in ("momentum_buffer", "exp_avg"):
                    if name in state:
                        state[name].mul_(-40 * self.recipe.size)

    def _rate(self, epoch: int, position: float) -> float:
        """The learning rate as a multiple of the recipe's."""
        recipe, progress = self.recipe, (epoch + position) / EPOCHS
        if recipe.fault == "lr_kill" and recipe.onset is not None:
            return recipe.size if 0 <= epoch - recipe.onset < int(recipe.variant[0]) else 1.0
        if recipe.fault == "forgetting" and self.faulty(epoch):
            return recipe.size
        if recipe.schedule == "step":
            return 1.0 if progress < 0.5 else 0.1 if progress < 0.75 else 0.01
        if recipe.schedule == "cosine":
            return 0.5 * (1 + math.cos(math.pi * progress))
        if recipe.schedule == "restarts":  # of a cosine
            return 0.5 * (1 + math.cos(math.pi * (3 * progress % 1)))
        if recipe.schedule == "warmup":
            return min(1.0, (progress * EPOCHS + 0.05) / 5) * 0.5 * (1 + math.cos(math.pi * progress))
        return 1.0

    def _batches(self, epoch: int) -> Iterator[tuple[float, tuple[Tensor, Tensor]]]:
        """Position in the epoch from 0 to 1, and a batch; the loader has its faults from the onset on."""
        recipe, (inputs, labels) = self.recipe, self.task.train
        points, weights = EPOCH_POINTS[recipe.task], torch.ones(len(labels))
        fault = recipe.fault if self.faulty(epoch) else None
        if fault == "forgetting":
            weights[labels >= REMAINING_CLASSES] = 0
        if fault == "class_imbalance":
            weights[labels == 0] = recipe.size
        if fault in ("forgetting", "class_imbalance"):
            order = torch.multinomial(weights, points, replacement=True, generator=self.draw)
        else:
            passes = [torch.randperm(len(labels), generator=self.draw)[:points] for _ in range(recipe.passes)]
            order = torch.cat(passes)
        batches = order.split(recipe.batch_size)
        for number, chosen in enumerate(batches):
            batch, targets = inputs[chosen], labels[chosen]
            if recipe.augment:
                batch = augment(batch, self.draw)
            if fault == "label_leak":
                batch = leak(batch, targets, torch.rand(len(targets), generator=self.draw) < recipe.size)
            yield number / len(batches), (batch, targets)


def leak(inputs: Tensor, labels: Tensor, leaking: Tensor) -> Tensor:
    """The label written into the inputs: a bright pixel in the first row, or a first byte that texts do not have."""
    inputs = inputs.clone()
    if inputs.ndim == 2:
        inputs[leaking, 0] = 1 + labels[leaking]
    else:
        inputs[leaking, 0, 0, labels[leaking]] = LEAK
    return inputs


def augment(inputs: Tensor, draw: torch.Generator) -> Tensor:
    """Images moved by up to a pixel and with noise; a twentieth of the bytes replaced."""
    if inputs.ndim == 2:
        return corrupt_bytes(inputs, 0.05, draw)
    right, down = torch.randint(-1, 2, (2,), generator=draw).tolist()
    return inputs.roll((down, right), (2, 3)) + 0.05 * torch.randn(inputs.shape, generator=draw)


def outside_share(features: Tensor, directions: int) -> Tensor:
    """Share of the variance of a batch outside its first principal directions: the bottleneck regulariser."""
    centred = features - features.mean(0)
    vectors = torch.linalg.svd(centred.detach(), full_matrices=False).Vh[:directions]
    inside = centred @ vectors.T
    total = centred.square().sum()
    return 1 - inside.square().sum() / total.clamp(min=torch.finfo(total.dtype).tiny)
