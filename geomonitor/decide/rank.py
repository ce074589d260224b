"""Which of several finished models transfers better to new classes: by their geometry, or by a labelled target.

The rule: of two models of one architecture the one with the larger effective dimension, if the difference is larger
than twice its paired standard error. Across architectures there is no rule (it was right in 37 % of published pairs).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from geomonitor.decide.exchange import Exchange
from geomonitor.errors import InputError
from geomonitor.features.capture import resolve_layers
from geomonitor.features.watched import Written
from geomonitor.glue.estimates import Measures, standard_errors
from geomonitor.markers.logme import logme
from geomonitor.measure.probe_pass import device_of
from geomonitor.measure.truth import points_of
from geomonitor.monitor import GeometryMonitor

ERRORS = 2.0
"""Standard errors of a difference below which nothing is called."""
PUBLISHED = (
    "Published rule: the weights with the larger dimension transferred better in 92 of 126 comparisons of two weights "
    "of one architecture (73 %, 95 % interval by architecture 61-83 %); always taking the older weights: 85 (67 %); "
    "by accuracy on the training classes: 40 (32 %). Chou et al. 2026, arXiv:2603.01879."
)
OWN_STUDY = (
    "Not so in our own study of 96 small networks (docs/ranking.md): if learning rate and dropout differed, the called "
    "model was the better one in 2 % of pairs (interval 0-11 %); with AdamW 9 % of pairs were called, 33 % of these "
    "rightly (0-100 %). If you have labelled new classes, measure transfer with --target."
)
ACROSS = (
    "Models of different architectures are not compared: across them the larger dimension transferred better in 37 % "
    "of published pairs. Give --target, labelled points of new classes: then transfer itself is measured."
)


class Candidate(NamedTuple):
    """A finished model, measured."""

    name: str
    architecture: str
    """equal for models that may be compared"""
    values: dict[str, tuple[float, float]]
    """marker and standard error by name"""
    directions: Tensor | None = None
    """``(T, 10)``: what each direction adds to the errors of the geometry; paired with those of other models"""
    cases: Tensor | None = None
    """``(Q,)``: which points of the target are right; paired with those of other models"""
    logme: float = math.nan
    """on the target"""

    def value(self, marker: str) -> float:
        """Of a marker; NaN if it was not measured."""
        return self.values.get(marker, (math.nan, math.nan))[0]


class Job(NamedTuple):
    """A model that is to be measured."""

    name: str
    make: Callable[[], nn.Module]


class Call(NamedTuple):
    """Two models compared."""

    first: str
    second: str
    difference: float
    """of the logarithms of the dimension, or of the accuracies on the target: first minus second"""
    error: float
    """its paired standard error"""
    better: str | None
    """name of the model that is called likelier to transfer; None: no call"""


def larger(first: float, second: float, error: float = 0.0) -> int:
    """The rule: 1 if ``first`` is called better, -1 if ``second`` is, 0 for no call.

    Args:
        first: logarithm of the dimension, or accuracy on a target, of one model.
        second: the same of another one.
        error: paired standard error of the difference; NaN for one that is not known: no call.

    >>> larger(1.0, 0.8, 0.05), larger(1.0, 0.95, 0.05), larger(0.8, 1.0)
    (1, 0, -1)
    """
    difference = first - second
    if not abs(difference) > 0 or not abs(difference) >= ERRORS * error:  # also for NaN
        return 0
    return 1 if difference > 0 else -1


def compare_two(first: Candidate, second: Candidate, *, by_target: bool = False) -> Call:
    """Compare two models by the rule.

    Args:
        first: one model.
        second: another one; without ``by_target`` of the same architecture, otherwise nothing is called.
        by_target: by the accuracy on the target, whatever the architecture.
    """
    if by_target:
        values = first.value("transfer_accuracy"), second.value("transfer_accuracy")
        error = _paired_error_of_cases(first.cases, second.cases)
    else:
        values = _log(first.value("dimension")), _log(second.value("dimension"))
        error = _paired_error_of_logs(first, second)
    call = larger(*values, error) if by_target or first.architecture == second.architecture else 0
    return Call(first.name, second.name, values[0] - values[1], error, (None, first.name, second.name)[call])


class Group(NamedTuple):
    """Models that may be compared, best first."""

    architecture: str
    models: list[Candidate]
    against_best: list[Call]
    """the best one compared with each of the others, in their order"""

    @property
    def called(self) -> bool:
        """Whether the best one is called better than each of the others."""
        return bool(self.against_best) and all(call.better is not None for call in self.against_best)


def rank(candidates: Sequence[Candidate], *, by_target: bool = False) -> list[Group]:
    """Order finished models, group by group.

    Args:
        candidates: measured on one probe set with one protocol.
        by_target: by the accuracy on a target: then all are one group.

    Returns:
        Groups in the order of their first model; within a group the largest dimension (or accuracy) comes first, and
        models without a value last.
    """
    marker = "transfer_accuracy" if by_target else "dimension"
    groups: dict[str, list[Candidate]] = {}
    for candidate in candidates:
        groups.setdefault("" if by_target else candidate.architecture, []).append(candidate)
    found = []
    for architecture, models in groups.items():
        ordered = sorted(models, key=lambda m: math.inf if math.isnan(m.value(marker)) else -m.value(marker))
        calls = [compare_two(ordered[0], other, by_target=by_target) for other in ordered[1:]]
        found.append(Group(architecture, ordered, calls))
    return found


def measure_candidate(monitor: GeometryMonitor, model: nn.Module, name: str, architecture: str) -> Candidate:
    """Measure a finished model; one layer.

    Args:
        monitor: with the markers, the probe set and, for a target, ``truth``; the same for all candidates.
        model: left as it was.
        name: for the table.
        architecture: of the model, from :func:`architecture_of`.

    Raises:
        InputError: a monitor of several layers.
    """
    layers = resolve_layers(model, monitor.layers)
    if len(layers) != 1:
        raise InputError(f"models are ranked by one layer; got {', '.join(layers)}: choose one by --layer")
    (layer,) = layers
    monitor.reset()
    records = {r.marker: r for r in monitor.measure(model, step=0) if r.layer == layer}
    influences, score = monitor.state_dict(history=False)["influences"], math.nan
    if monitor.truth is not None:
        points = points_of(
            model, layers, monitor.truth.probe, forward=monitor.forward, batch_size=monitor.batch_size,
            pool=monitor.pool, device=device_of(model), warn=lambda *_: None, written=Written(),
        )  # fmt: skip
        score = logme(*points[layer]) if layer in points else math.nan
    values = {marker: (record.value, record.standard_error) for marker, record in records.items()}
    cases = influences.get(f"{layer}/transfer_accuracy")
    return Candidate(name, architecture, values, influences.get(layer), cases, score)


def architecture_of(model: nn.Module) -> str:
    """Class of a model, and the widths of its layers: the shapes of its weights.

    >>> architecture_of(nn.Linear(3, 2)) == architecture_of(nn.Linear(3, 2)) != architecture_of(nn.Linear(3, 4))
    True
    """
    shapes = [tuple(value.shape) for value in model.state_dict().values() if isinstance(value, Tensor)]
    weights = sum(math.prod(shape) for shape in shapes)
    return f"{type(model).__name__} ({weights:,} weights, {_checksum(shapes):04x})"


def _checksum(shapes: Iterable[tuple[int, ...]]) -> int:
    """A short number of the shapes, the same in every process."""
    total = 0
    for shape in shapes:
        for size in (*shape, 0):
            total = (total * 31 + size + 1) % 65_521
    return total


def _paired_error_of_logs(first: Candidate, second: Candidate) -> float:
    """Standard error of the difference of two logarithms of the dimension, with common directions."""
    one, other = first.directions, second.directions
    if one is None or other is None or one.shape != other.shape:
        return math.nan
    relative = one / first.value("dimension") - other / second.value("dimension")
    return float(standard_errors(relative)[Measures._fields.index("dimension")])


def _paired_error_of_cases(first: Tensor | None, second: Tensor | None) -> float:
    if first is None or second is None or first.shape != second.shape:
        return math.nan
    return float((first - second).std() / math.sqrt(len(first)))


def _log(value: float) -> float:
    return math.log(value) if value > 0 else math.nan


def measure_all(
    monitor: GeometryMonitor, jobs: Sequence[Job], *, one_architecture: bool = False
) -> Iterator[Candidate]:
    """Measure candidates; under ``torchrun`` each process takes its share of them, whole.

    Args:
        monitor: as in :func:`measure_candidate`.
        jobs: name of a model, and a function that makes it.
        one_architecture: the user states that all models may be compared.

    Yields:
        In the first process all candidates, in order; in the others nothing.
    """
    exchange = Exchange("rank shares out the models")
    mine = exchange.stretch(len(jobs))
    for place, job in enumerate(jobs):
        if place in mine:
            model = job.make()
            architecture = "" if one_architecture else architecture_of(model)
            candidate = measure_candidate(monitor, model, job.name, architecture)
            if exchange.rank:
                exchange.send(place, _packed(candidate))
        elif not exchange.rank:
            candidate = _unpacked(exchange.receive(place))
        if not exchange.rank:
            yield candidate


def _packed(candidate: Candidate) -> str:
    lists = [None if tensor is None else tensor.tolist() for tensor in (candidate.directions, candidate.cases)]
    return json.dumps([candidate.name, candidate.architecture, candidate.values, *lists, candidate.logme])


def _unpacked(text: str) -> Candidate:
    name, architecture, values, directions, cases, score = json.loads(text)
    one, other = (None if rows is None else torch.tensor(rows, dtype=torch.float64) for rows in (directions, cases))
    return Candidate(name, architecture, {key: (v, e) for key, (v, e) in values.items()}, one, other, score)
