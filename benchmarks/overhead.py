"""Share of an epoch that the default measurement takes. Run: ``python -m benchmarks.overhead [steps]``.

A ResNet-18 for 32 x 32 images, 50,000 of them an epoch, 10 classes, batches of 128. The time of an epoch is
extrapolated from some training steps (after two that warm up); validation, data loading and logging, which would make
the share smaller, are left out. The measurement is that of ``GeometryMonitor(probe)`` with its default settings,
500 points.
"""

from __future__ import annotations

import statistics
import sys
from time import perf_counter

import torch
from torch import nn
from torch.utils.data import TensorDataset

import geomonitor as gm
from benchmarks.resnet import resnet18

IMAGES, BATCH, CLASSES = 50_000, 128, 10


def synchronized() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return perf_counter()


def main(steps: int = 5) -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    model = resnet18(CLASSES).to(device).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    images, labels = torch.randn(BATCH, 3, 32, 32, device=device), torch.randint(CLASSES, (BATCH,), device=device)
    times = []
    for _ in range(steps + 2):
        started = synchronized()
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
        times.append(synchronized() - started)
    epoch = statistics.median(times[2:]) * IMAGES / BATCH
    held_out = TensorDataset(torch.randn(CLASSES * 50, 3, 32, 32), torch.arange(CLASSES * 50) % CLASSES)
    monitor = gm.GeometryMonitor(gm.ProbeSet.from_dataset(held_out))
    costs = [monitor.measure(model, step=step)[-2].value for step in range(4)]
    print("| device | threads | epoch, extrapolated | first measurement | later ones, median | share of the epoch |")
    print("|---|---:|---:|---:|---:|---:|")
    later = statistics.median(costs[1:])
    print(
        f"| {device} | {torch.get_num_threads()} | {epoch:.0f} s | {costs[0]:.2f} s | {later:.2f} s "
        f"| {later / epoch:.2%} |"
    )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
