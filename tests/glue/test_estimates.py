"""Standard errors against what repeated draws and a bootstrap say; differences; the split over ranks."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import Tensor

from geomonitor.errors import InputError
from geomonitor.glue.draws import draw_dichotomies, draw_directions
from geomonitor.glue.estimates import Measures
from geomonitor.glue.manifolds import manifold_geometry
from geomonitor.glue.result import EffectiveGeometry
from tests.glue.clouds import gaussian_clouds, relu_network

REPEATS = 80
# A standard deviation of 80 draws is known to 8 %; ten measures in three cases: four times that.
AGREEMENT = 0.33

CASES = {
    "network": lambda: relu_network(5, 20, 48, 60),
    "clouds": lambda: gaussian_clouds(4, 20, 48, 0.3),
    "collapsed": lambda: gaussian_clouds(5, 20, 48, 1e-2),
}


def values(result: EffectiveGeometry) -> Tensor:
    return torch.stack(result.measures)


@pytest.mark.parametrize("mode", ["joint", "pairwise"])
@pytest.mark.parametrize("case", CASES)
def test_standard_errors_are_the_scatter_of_repeated_draws(case: str, mode: str) -> None:
    features, labels = CASES[case]()
    results = [
        manifold_geometry(features, labels, directions=60, seed=seed, mode=mode)  # type: ignore[arg-type]
        for seed in range(REPEATS)
    ]
    scatter = torch.stack([values(g) for g in results]).std(dim=0)
    errors = torch.stack([torch.stack(g.standard_error) for g in results]).square().mean(dim=0).sqrt()
    torch.testing.assert_close(errors / scatter, torch.ones(10).double(), atol=AGREEMENT, rtol=0)


def test_standard_errors_agree_with_the_bootstrap() -> None:
    features, labels = relu_network(5, 20, 48, 60)
    t, y = draw_directions(100, 48, seed=0), draw_dichotomies(100, 5, "balanced", seed=0)
    g = manifold_geometry(features, labels, directions=t, dichotomies=y)
    stream = torch.Generator().manual_seed(0)
    resampled = []
    for _ in range(REPEATS):
        rows = torch.randint(100, (100,), generator=stream)
        resampled.append(values(manifold_geometry(features, labels, directions=t[rows], dichotomies=y[rows])))
    ratio = torch.stack(g.standard_error) / torch.stack(resampled).std(dim=0)
    torch.testing.assert_close(ratio, torch.ones(10).double(), atol=AGREEMENT, rtol=0)


class TestDifference:
    features, labels = relu_network(5, 20, 48, 60)
    later = features + 0.02 * gaussian_clouds(5, 20, 48, 1.0)[0].float()

    def test_is_the_scatter_of_paired_draws_and_smaller_than_unpaired(self) -> None:
        pairs = [
            [manifold_geometry(z, self.labels, directions=60, seed=seed) for z in (self.features, self.later)]
            for seed in range(REPEATS)
        ]
        changes = [after.difference(before) for before, after in pairs]
        scatter = torch.stack([torch.stack(change.value) for change in changes]).std(dim=0)
        errors = torch.stack([torch.stack(change.standard_error) for change in changes]).square().mean(dim=0).sqrt()
        torch.testing.assert_close(errors / scatter, torch.ones(10).double(), atol=AGREEMENT, rtol=0)
        before, after = pairs[0]
        unpaired = torch.stack(before.standard_error).square() + torch.stack(after.standard_error).square()
        assert float(changes[0].standard_error.dimension.square() / unpaired[1]) < 0.5

    def test_value_and_z(self) -> None:
        before, after = (manifold_geometry(z, self.labels, directions=30) for z in (self.features, self.later))
        change = after.difference(before)
        assert isinstance(change.z, Measures)
        assert float(change.value.capacity) == pytest.approx(float(after.capacity - before.capacity))
        assert float(change.z.radius) == pytest.approx(float(change.value.radius / change.standard_error.radius))

    @pytest.mark.parametrize(
        "other", [{"seed": 1}, {"directions": 31}, {"dichotomies": "random"}, {"mode": "pairwise"}]
    )
    def test_refuses_another_protocol(self, other: dict[str, object]) -> None:
        one = manifold_geometry(self.features, self.labels, directions=30)
        two = manifold_geometry(self.features, self.labels, **{"directions": 30, **other})  # type: ignore[arg-type]
        with pytest.raises(InputError, match="one protocol"):
            two.difference(one)

    def test_refuses_other_points_per_class(self) -> None:
        one = manifold_geometry(self.features, self.labels, directions=30)
        with pytest.raises(InputError, match="points"):
            manifold_geometry(self.features[1:], self.labels[1:], directions=30).difference(one)


def test_works_in_inference_mode() -> None:
    features, labels = relu_network(4, 10, 30, 0)
    expected = manifold_geometry(features, labels, directions=20)
    with torch.inference_mode():
        g = manifold_geometry(features.double() * 1.0, labels + 0, directions=20)
    torch.testing.assert_close(values(g), values(expected), rtol=1e-9, atol=1e-9)


class Threads:
    """Ranks as threads that meet in every collective; a call that not all make times out."""

    def __init__(self, size: int) -> None:
        self.barrier = threading.Barrier(size, timeout=60)
        self.parts: list[Tensor | None] = [None] * size

    def exchange(self, rank: int, part: Tensor) -> list[Tensor]:
        self.parts[rank] = part
        self.barrier.wait()
        parts = [p for p in self.parts if p is not None]
        self.barrier.wait()
        return parts


class ThreadRank:
    def __init__(self, threads: Threads, rank: int, size: int) -> None:
        self.threads, self.rank, self.size = threads, rank, size

    def sum(self, part: Tensor) -> Tensor:
        return torch.stack(self.threads.exchange(self.rank, part)).sum(dim=0)

    def gather(self, part: Tensor) -> Tensor:
        return torch.cat(self.threads.exchange(self.rank, part))


@pytest.mark.parametrize(("mode", "size"), [("joint", 2), ("joint", 3), ("pairwise", 2), ("pairwise", 8)])
def test_split_over_ranks_gives_the_result_of_one(mode: str, size: int) -> None:
    """Eight ranks for six pairs: some have nothing to do, and still take part in every collective."""
    features, labels = gaussian_clouds(4, 8, 20, 0.5)
    options = {"directions": 25, "mode": mode}
    expected = manifold_geometry(features, labels, **options)  # type: ignore[arg-type]
    threads, found = Threads(size), {}

    def work(rank: int) -> None:
        own = ThreadRank(threads, rank, size)
        found[rank] = manifold_geometry(features, labels, ranks=own, **options)  # type: ignore[arg-type]

    workers = [threading.Thread(target=work, args=(rank,)) for rank in range(size)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert sorted(found) == list(range(size))
    for g in found.values():
        torch.testing.assert_close(values(g), values(expected), rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(
            torch.stack(g.standard_error), torch.stack(expected.standard_error), rtol=1e-8, atol=1e-10
        )
