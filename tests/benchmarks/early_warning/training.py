"""One run: trained by a recipe, measured after each epoch by the monitor and against the truth."""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Iterator

import torch
from torch import Tensor, nn

import geomonitor as gm
from tests.benchmarks.early_warning.families import EPOCHS, Recipe
from tests.benchmarks.early_warning.tasks import (
    EPOCH_POINTS,
    Network,
    Task,
    build_network,
    corrupt_bytes,
    load_task,
)
from tests.benchmarks.early_warning.truth import measure_truth

MARKERS = (
    *("capacity", "dimension", "radius", "utility"),
    *("participation_ratio", "numerical_rank", "effective_rank", "stable_rank", "rankme"),
    *("participation_ratio_per_class", "nc1", "cdnv", "nc2_equinorm", "nc2_equiangular", "nc3", "nc4"),
    *("within_class_distance", "active_fraction", "dead_units", "mean_covariance", "mean_norm"),
    *("intrinsic_dimension", "drift", "accuracy", "entropy"),
)
PER_CLASS, DIRECTIONS = 50, 200
"""The defaults of the monitor."""
MOMENTUM = 0.9
REMAINING_CLASSES = 2
"""Classes that "forgetting" goes on with."""
LEAK = 2.0
"""Brightness of the pixel that tells the label; images lie in [0, 1]."""


def run(recipe: Recipe, epochs: int = EPOCHS) -> Iterator[dict[str, float]]:
    """Train and measure: one row of numbers for each epoch; fewer ``epochs`` give the first rows of the whole run."""
    torch.manual_seed(recipe.stream)
    task = load_task(recipe.task, recipe.stream)
    probe = gm.ProbeSet.from_dataset(task.probe, per_class=PER_CLASS)
    monitor = gm.GeometryMonitor(probe, markers=MARKERS, detector=None, directions=DIRECTIONS)
    trainer = Trainer(recipe, task)
    for epoch in range(epochs):
        told = trainer.train_epoch(epoch)
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
        truth = measure_truth(trainer.model, task)
        if recipe.variant == "train and validation" and trainer.faulty(epoch):  # what the team sees then
            truth |= trainer.leaking_validation()
        yield {"epoch": epoch, "step": trainer.step, **told, **truth, **geometry}


class Trainer:
    """A plain training loop, with the fault of the recipe."""

    def __init__(self, recipe: Recipe, task: Task) -> None:
        self.recipe, self.task = recipe, task
        self.draw = torch.Generator().manual_seed(recipe.stream + 1)
        self.model, self.optimizer = self._fresh()
        self.frozen: nn.Module | None = None
        self.step = 0

    def faulty(self, epoch: int) -> bool:
        return self.recipe.onset is not None and epoch >= self.recipe.onset

    def train_epoch(self, epoch: int) -> dict[str, float]:
        """Returns what people watch: losses, accuracy, gradient norm, learning rate, weight decay."""
        recipe = self.recipe
        if epoch == recipe.resume_epoch:
            self._resume()
        if epoch == recipe.onset and recipe.fault == "broken_resume":
            self._resume()
            self._break()
        if epoch == recipe.onset and recipe.fault == "weight_decay":
            self.optimizer.param_groups[0]["weight_decay"] = recipe.size
        group = self.optimizer.param_groups[0]
        self.model.train()
        losses, rights, norms, size = [], [], [], 0
        for position, (inputs, labels) in self._batches(epoch):
            group["lr"] = recipe.lr * self._rate(epoch, position)
            logits = self.model(inputs)
            loss = nn.functional.cross_entropy(logits, labels, label_smoothing=recipe.label_smoothing)
            losses.append(float(loss.detach()))
            rights.append(float((logits.argmax(1) == labels).sum()))
            size += len(labels)
            if recipe.fault == "narrowing" and self.faulty(epoch):
                loss = loss + recipe.size * outside_share(self.model.body(inputs), int(recipe.variant[0]))
            self.optimizer.zero_grad()
            loss.backward()
            norm = float(nn.utils.get_total_norm([p.grad for p in self.model.parameters() if p.grad is not None]))
            norms.append(norm)
            if self.frozen is not None:
                for parameter in self.frozen.parameters():
                    parameter.grad = None
            if math.isfinite(norm):  # a step that overflows is left out, as under mixed precision
                self.optimizer.step()
            self.step += 1
        return {
            "train_loss": sum(losses) / len(losses),
            "train_accuracy": sum(rights) / size,
            "max_batch_loss": max(losses),
            "gradient_norm": sum(norms) / len(norms),
            "lr": group["lr"],
            "weight_decay": group["weight_decay"],
        }

    @torch.no_grad()
    def leaking_validation(self) -> dict[str, float]:
        """Validation where the label leaks there too."""
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
