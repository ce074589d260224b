"""Cost of markers on one thread: ``OMP_NUM_THREADS=1 python -m benchmarks.marker_cost``.

First the default measurement against what it cannot do without, one call of ``manifold_geometry`` and one
``torch.linalg.svdvals`` of the features, for three shapes: at most 1.5 times as much. Then all markers but GLUE against
one forward pass of a ResNet-18 on 32 x 32 images, Q = 500 points in 10 classes, N = 512: below 10 %. The processor time
of this thread is taken, so that other work on the machine does not count.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from time import process_time

import torch
from torch import nn
from torch.utils.data import TensorDataset

import geomonitor as gm
from benchmarks.resnet import resnet18

CLASSES, PER_CLASS, REPEATS = 10, 50, 3
AT_MOST = 0.10
SHAPES = ((500, 512), (1000, 2048), (2000, 512))
"""Points ``Q`` and units ``N`` of the first table."""
FACTOR = 1.5


def seconds(function: Callable[[], object]) -> float:
    start = process_time()
    function()
    return process_time() - start


def median(function: Callable[[], object], repeats: int = 5) -> float:
    function()  # first calls load libraries, draw directions
    return statistics.median(seconds(function) for _ in range(repeats))


def shapes() -> bool:
    """The first table; True if every row is within the factor."""
    print("| Q | N | default measurement | manifold_geometry | svdvals | ratio | at most |")
    print("|---:|---:|---:|---:|---:|---:|---:|")
    good = True
    for points, units in SHAPES:
        labels = torch.arange(points) % CLASSES
        features = torch.relu(torch.randn(points, units) + torch.randn(CLASSES, units)[labels])
        head = nn.Sequential(nn.Identity(), nn.Linear(units, CLASSES))  # its features are the data
        probe = gm.ProbeSet.from_dataset(TensorDataset(features, labels), per_class=points // CLASSES)
        watcher = gm.GeometryMonitor(probe, on_error="raise")
        measurement = median(lambda w=watcher, h=head: w.measure(h, step=0))
        geometry = median(lambda x=features, y=labels: gm.manifold_geometry(x, y))
        values = median(lambda x=features: torch.linalg.svdvals(x.double()))
        ratio = measurement / (geometry + values)
        good &= ratio <= FACTOR
        print(
            f"| {points} | {units} | {measurement:.3f} s | {geometry:.3f} s | {values:.3f} s | {ratio:.2f} | {FACTOR} |"
        )
    return good


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    good = shapes()
    labels = torch.arange(CLASSES * PER_CLASS) % CLASSES
    images = torch.randn(len(labels), 3, 32, 32) + torch.randn(CLASSES, 3, 1, 1)[labels]
    model = resnet18().eval()
    probe = gm.ProbeSet.from_dataset(TensorDataset(images, labels), per_class=PER_CLASS)
    names = [name for name in gm.MARKER_GROUPS["all"] if gm.MARKERS[name].state != "manifolds"]
    features = torch.relu(torch.randn(len(labels), 512) + torch.randn(CLASSES, 512)[labels])
    logits = torch.randn(len(labels), CLASSES)
    metrics = {
        "spectrum": gm.FeatureSpectrum,
        "classes": lambda: gm.ClassStructure(CLASSES, weight=model[-1].weight),
        "points": lambda: gm.PointStatistics(CLASSES, weight=model[-1].weight, reference=features.flip(0)),
        "logits": lambda: gm.LogitStatistics(CLASSES),
    }

    def measured(state: str) -> None:
        metric = metrics[state]()
        for part in torch.arange(len(labels)).split(128):
            metric.update((logits if state == "logits" else features)[part], labels[part])
        metric.compute()

    @torch.no_grad()
    def forward() -> None:
        for batch in probe.loader():
            model(batch.inputs)

    for state in metrics:
        measured(state)  # first calls load libraries
    pass_time = statistics.median(seconds(forward) for _ in range(REPEATS))
    print(f"{len(names)} markers, Q = {len(labels)}, N = 512\none forward pass: {pass_time:.2f} s")
    total = 0.0
    for state in metrics:
        spent = statistics.median(seconds(lambda s=state: measured(s)) for _ in range(REPEATS))
        total += spent
        print(f"{state:10s} {spent:6.3f} s  {spent / pass_time:6.2%}")
    print(f"all        {total:6.3f} s  {total / pass_time:6.2%}  (at most {AT_MOST:.0%})")
    watcher = gm.GeometryMonitor(probe, markers=names, panel=gm.Panel(["participation_ratio"]), on_error="raise")
    watcher.measure(model, step=0)
    whole = statistics.median(seconds(lambda: watcher.measure(model, step=1)) for _ in range(REPEATS))
    print(f"a whole measurement, probe pass included: {whole:.2f} s, {whole / pass_time - 1:+.1%} on the pass alone")
    raise SystemExit(not good or total > AT_MOST * pass_time)


if __name__ == "__main__":
    main()
