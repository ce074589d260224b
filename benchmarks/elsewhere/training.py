"""One run: trained by a recipe, measured by the monitor and against the truth before the first step and on the way."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor, nn

import geomonitor as gm
from benchmarks.early_warning.training import outside_share
from benchmarks.elsewhere.recipes import Recipe, decay_of
from benchmarks.elsewhere.tasks import FROZEN, RATES, Task, build_network, load_task
from benchmarks.elsewhere.truth import measure_truth

MARKERS = (
    *("capacity", "dimension", "radius", "utility", "participation_ratio", "numerical_rank", "effective_rank"),
    *("stable_rank", "rankme", "participation_ratio_per_class", "nc1", "cdnv", "nc2_equinorm", "nc3"),
    *("within_class_distance", "active_fraction", "dead_units", "mean_covariance", "mean_norm"),
    *("intrinsic_dimension", "drift", "accuracy", "entropy"),
)
GEOMETRY = ("capacity", "dimension", "radius", "utility")
FOLLOW_UP = tuple(m for m in MARKERS if m not in (*GEOMETRY, "drift"))
"""Markers that are measured a second time, half an interval after each measurement."""
TEMPERATURE = 0.5
RIDGE = 1e-3
Row = dict[str, float]


def run(recipe: Recipe) -> Iterator[Row]:
    """Train and measure: a row of numbers before the first step and after each interval.

    ``later_<marker>`` is measured half an interval after the row it stands in; NaN where it is not.
    """
    torch.manual_seed(recipe.stream)
    task = load_task(recipe.task, recipe.stream, recipe.share)
    per_class = task.sizes.probe
    probe = gm.ProbeSet.from_dataset(task.probe, per_class=per_class, classes=task.sizes.known)
    loop = Loop(recipe, task)
    monitors = [
        gm.GeometryMonitor(probe, layers={"features": "body"}, markers=markers, panel=None, geometry={"ridge": RIDGE})
        for markers in (MARKERS, FOLLOW_UP)
    ]
    truth = measure_truth(task)
    count = task.sizes.epochs * task.sizes.checks
    follow_up = recipe.task not in FROZEN
    loss = math.nan
    for check in range(count + 1):
        row = {"check": float(check), "step": float(loop.step), "train_loss": loss, "lr": loop.rate()}
        row |= truth(loop.model) | loop.validate()
        row |= dict.fromkeys(MARKERS, math.nan) | _measure(monitors[0], loop, check)
        later = dict.fromkeys(FOLLOW_UP, math.nan)
        losses = []
        if check < count:
            for part in range(2):
                losses += [loop.train_half(check, repeat, part) for repeat in range(recipe.length)]
                if part == 0 and follow_up:
                    later |= _measure(monitors[1], loop, check)
        loss = sum(losses) / max(len(losses), 1)
        yield row | {f"later_{name}": value for name, value in later.items()}


def _measure(monitor: gm.GeometryMonitor, loop: Loop, check: int) -> Row:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", gm.GeomonitorWarning)  # a dead network has undefined markers: NaN says it
        records = monitor.measure(loop.model, step=loop.step, epoch=check)
    row: Row = {}
    for record in records:
        if record.marker in MARKERS:
            row[record.marker] = record.value
            if record.marker in GEOMETRY:
                row[f"{record.marker}_standard_error"] = record.standard_error
                row[f"{record.marker}_change_error"] = record.change_error
    if loop.recipe.task == "simclr":
        row |= dict.fromkeys(("accuracy", "entropy", "nc3"), math.nan)  # the projector is no classifier
    return row


class Loop:
    """A plain training loop; from the onset on something is different."""

    def __init__(self, recipe: Recipe, task: Task) -> None:
        self.recipe, self.task = recipe, task
        self.draw = torch.Generator().manual_seed(recipe.stream + 1)
        self.model = build_network(task, recipe.width)
        self.model.dropout.p = recipe.dropout
        self.optimizer = self._optimizer(recipe.optimizer, recipe.lr)
        self.step, self.check, self.changed = 0, 0, False
        self.masks: list[tuple[nn.Parameter, Tensor]] = []
        self.order = torch.empty(0, dtype=torch.long)

    @property
    def after(self) -> int | None:
        """Measurement intervals since the onset; None before it and where there is none."""
        onset = self.recipe.onset
        return None if onset is None or self.check < onset else self.check - onset

    def rate(self) -> float:
        """The learning rate."""
        recipe, sizes = self.recipe, self.task.sizes
        count = sizes.epochs * sizes.checks
        progress = self.check / count
        factor = 1.0
        if recipe.schedule == "step":
            factor = 1.0 if progress < 0.5 else 0.1 if progress < 0.75 else 0.01
        elif recipe.schedule in ("cosine", "warmup"):
            factor = 0.5 * (1 + math.cos(math.pi * progress))
            factor *= min(1.0, (self.check + 0.2) / (0.2 * count)) if recipe.schedule == "warmup" else 1
        if recipe.family == "rewarming" and self.after is not None:
            factor = min(1.0, (self.after + 1) / 3)
        if recipe.family in ("rate_kill", "early_kill") and self.after is not None and self.after < 2:
            factor = 4 * 8**recipe.size * (2 if recipe.optimizer == "adamw" else 1)
        return recipe.lr * factor

    def train_half(self, check: int, repeat: int, part: int) -> float:
        """Train for half an interval; the mean loss."""
        self.check = check
        if self.after is not None and not self.changed:
            self.changed, self.order = True, self.order[:0]
            self._change()
        self._each_interval()
        sizes = self.task.sizes
        if (part == 0 and repeat == 0 and check % sizes.checks == 0) or len(self.order) < sizes.batch:
            self.order = torch.cat([self.order, self._epoch()])
        points = max(sizes.batch, round(len(self._epoch(count_only=True)) / sizes.checks / 2))
        chosen, self.order = self.order[:points], self.order[points:]
        losses = [self._train(batch) for batch in chosen.split(sizes.batch) if len(batch) > 1]
        return sum(losses) / max(len(losses), 1)

    @torch.no_grad()
    def validate(self) -> Row:
        """Loss and accuracy on validation points, as the team sees them."""
        inputs, labels = self.task.validation.tensors
        self.model.eval()
        if self.recipe.task == "simclr":
            kept = self.draw.get_state()
            self.draw.manual_seed(0)
            loss = self._contrast(inputs)
            self.draw.set_state(kept)
            return {"val_loss": float(loss), "val_accuracy": math.nan}
        logits = self.model(inputs)
        right = (logits.argmax(1) == labels).double().mean()
        return {"val_loss": float(nn.functional.cross_entropy(logits, labels)), "val_accuracy": float(right)}

    def _train(self, chosen: Tensor) -> float:
        recipe = self.recipe
        inputs, labels = (part[chosen] for part in self.task.train.tensors)
        family = recipe.family if self.after is not None else ""
        if family == "augmentation":
            inputs = self._augmented(inputs)
        if family == "normalisation":
            inputs = _wrongly_normalised(inputs, recipe.size)
        if family == "label_noise":
            wrong = torch.rand(len(labels), generator=self.draw) < 0.2 + 0.8 * recipe.size
            labels = torch.where(wrong, labels[torch.randperm(len(labels), generator=self.draw)], labels)
            inputs_of = torch.where(wrong, torch.randperm(len(labels), generator=self.draw), torch.arange(len(labels)))
        else:
            inputs_of = torch.arange(len(labels))
        self.model.train()
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate()
        if recipe.task == "simclr":
            loss = self._contrast(inputs, other=inputs[inputs_of])
            features = self.model.body(inputs) if family == "narrowing" else None
        else:
            features = self.model.body(inputs)
            loss = self._classify(features, labels, family)
        if family == "narrowing" and features is not None:
            loss = loss + 0.3 * 20**recipe.size * outside_share(features, 2)
        self.optimizer.zero_grad()
        loss.backward()
        norm = nn.utils.get_total_norm([p.grad for p in self.model.parameters() if p.grad is not None])
        if math.isfinite(float(norm)):
            self.optimizer.step()
        with torch.no_grad():
            for parameter, kept in self.masks:
                parameter.mul_(kept)
            if family == "precision":
                for parameter in self.model.parameters():
                    parameter.copy_(_rounded(parameter, round(5 - 4 * recipe.size)))
        self.step += 1
        return float(loss.detach())

    def _classify(self, features: Tensor, labels: Tensor, family: str) -> Tensor:
        smoothing = 0.05 + 0.15 * self.recipe.size if family == "label_smoothing" else 0.0
        if family != "mixup":
            logits = self.model.head(self.model.dropout(features))
            return nn.functional.cross_entropy(logits, labels, label_smoothing=smoothing)
        other = torch.randperm(len(labels), generator=self.draw)
        share = float(torch.rand((), generator=self.draw)) * 0.5
        logits = self.model.head((1 - share) * features + share * features[other])
        losses = (nn.functional.cross_entropy(logits, target) for target in (labels, labels[other]))
        return sum(weight * loss for weight, loss in zip((1 - share, share), losses, strict=True))  # type: ignore[return-value]

    def _contrast(self, inputs: Tensor, other: Tensor | None = None) -> Tensor:
        """The loss of SimCLR on two views of each image."""
        views = [self._augmented(part) for part in (inputs, inputs if other is None else other)]
        vectors = nn.functional.normalize(self.model(torch.cat(views)), dim=1)
        changed = self.recipe.family in ("label_smoothing", "mixup") and self.after is not None
        temperature = TEMPERATURE / 2 if changed else TEMPERATURE
        similar = vectors @ vectors.T / temperature
        similar = similar.masked_fill(torch.eye(len(vectors), dtype=torch.bool), -torch.inf)
        return nn.functional.cross_entropy(similar, torch.arange(len(vectors)).roll(len(inputs)))

    def _augmented(self, inputs: Tensor) -> Tensor:
        noise = 0.1 * torch.randn(inputs.shape, generator=self.draw)
        if self.recipe.task in FROZEN or inputs.ndim < 4:
            return inputs + noise * (inputs != 0)
        moved = []
        for part in inputs.split(8):
            right, down = torch.randint(-2, 3, (2,), generator=self.draw).tolist()
            moved.append(part.roll((down, right), (2, 3)))
        inputs = torch.cat(moved) + noise
        row, column = torch.randint(0, inputs.shape[2] - 4, (2,), generator=self.draw).tolist()
        erased = torch.zeros_like(inputs[:1])
        erased[:, :, row : row + 4, column : column + 4] = 1
        return inputs * (1 - erased)

    def _epoch(self, *, count_only: bool = False) -> Tensor:
        """The points of an epoch in their order."""
        labels = self.task.train.tensors[1]
        family, kept = self.recipe.family, torch.ones(len(labels), dtype=torch.bool)
        if family == "forgetting" and self.after is not None:
            kept = labels < max(2, self.task.sizes.known // 4)
        if self.after is None and family == "classes_added":
            kept = labels < self.task.sizes.known - max(1, self.task.sizes.known // 6)
        if self.after is None and family == "data_added":
            kept = torch.arange(len(labels)) % 3 == 0
        own = torch.nonzero(kept).flatten()
        full = len(labels)
        if self.recipe.share < 1:
            full = self.task.sizes.train * self.task.sizes.known
        repeats = -(-full // len(own))
        if count_only:
            return torch.empty(full)
        order = torch.cat([own[torch.randperm(len(own), generator=self.draw)] for _ in range(repeats)])[:full]
        if family == "duplicated_batch" and self.after is not None:
            times = 4 if self.recipe.size < 0.5 else 16
            few = order[: len(order) // times]
            order = torch.cat([part.repeat(times) for part in few.split(max(1, self.task.sizes.batch // times))])
        return order

    @torch.no_grad()
    def _change(self) -> None:
        """What happens once, at the onset."""
        recipe, model = self.recipe, self.model
        if recipe.family == "dropout":
            model.dropout.p = 0.2 + 0.4 * recipe.size
        if recipe.family == "optimizer":
            new: Literal["sgd", "adamw"] = "adamw" if recipe.optimizer == "sgd" else "sgd"
            self.recipe = replace(recipe, optimizer=new, lr=RATES[recipe.task][new])
            self.optimizer = self._optimizer(new, self.recipe.lr)
        if recipe.family in ("weight_decay", "decay_from_start"):
            self.optimizer.param_groups[0]["weight_decay"] = decay_of(recipe)
        if recipe.family == "half_layer":
            layer = [m for m in model.body.modules() if isinstance(m, (nn.Linear, nn.Conv2d))][-1]
            alive = (torch.rand(len(layer.weight), generator=self.draw) >= 0.3 + 0.6 * recipe.size).float()
            self.masks.append((layer.weight, alive.view(-1, *[1] * (layer.weight.ndim - 1))))
            if layer.bias is not None:
                self.masks.append((layer.bias, alive))
        if recipe.family == "pruning":
            for parameter in model.body.parameters():
                if parameter.ndim > 1:
                    limit = (
                        parameter.abs().flatten().kthvalue(max(1, round((0.2 + 0.3 * recipe.size) * parameter.numel())))
                    )
                    self.masks.append((parameter, (parameter.abs() > limit.values).float()))
        for parameter, kept in self.masks:
            parameter.mul_(kept)

    def _each_interval(self) -> None:
        recipe = self.recipe
        if recipe.family == "decay_ramp" and self.after is not None:
            self.optimizer.param_groups[0]["weight_decay"] = decay_of(recipe) * min(1.0, (self.after + 1) / 6)
        if recipe.family == "unfreezing":
            parameters = list(self.model.body.parameters())
            for parameter in parameters[: len(parameters) // 2]:
                parameter.requires_grad_(self.after is not None)

    def _optimizer(self, name: str, lr: float) -> torch.optim.Optimizer:
        decay, parameters = self.recipe.weight_decay, self.model.parameters()
        if name == "sgd":
            return torch.optim.SGD(parameters, lr=lr, momentum=0.9, weight_decay=decay)
        return torch.optim.AdamW(parameters, lr=lr, weight_decay=decay)


def _wrongly_normalised(inputs: Tensor, size: float) -> Tensor:
    """Inputs scaled, and images also shifted."""
    return inputs * (1 + 3 * size) + (0.5 * size if inputs.ndim == 4 else 0.0)


def _rounded(values: Tensor, bits: int) -> Tensor:
    """Values with so many bits of mantissa."""
    mantissa, exponent = torch.frexp(values)
    return torch.ldexp(torch.round(mantissa * 2**bits) / 2**bits, exponent)
