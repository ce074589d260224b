"""What figures show of a moment, on clouds whose picture is known."""

from __future__ import annotations

import math

import pytest
import torch
from torch.testing import assert_close

import geomonitor as gm
from geomonitor.measure.snapshot import MOST_CLASSES, MOST_DIRECTIONS, MOST_POINTS, Snapshot, take_snapshot


def cloud(classes: int, per_class: int, units: int, noise: float = 0.5) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(classes).repeat_interleave(per_class)
    centers = 3 * torch.randn(classes, units, generator=generator, dtype=torch.float64)
    noises = noise * torch.randn(len(labels), units, generator=generator, dtype=torch.float64)
    return centers[labels] + noises, labels


def test_eigenvalues_are_those_of_numpys_covariance():
    points, labels = cloud(4, 20, 7)
    shot = take_snapshot(points, labels)
    expected = torch.linalg.eigvalsh(torch.cov(points.T, correction=0)).flip(0)
    assert_close(shot.eigenvalues, expected)


def test_a_simplex_has_its_cosines_and_any_place_of_the_origin_gives_them():
    corners = torch.eye(5, dtype=torch.float64).repeat_interleave(3, dim=0)
    shot = take_snapshot(corners + 7, torch.arange(5).repeat_interleave(3))
    expected = torch.full((5, 5), -0.25, dtype=torch.float64).fill_diagonal_(1)
    assert_close(shot.center_cosines, expected)
    assert shot.class_dimensions.isnan().all()  # all points of a class are equal


def test_the_plane_of_three_classes_keeps_the_distances_of_their_centres():
    points, labels = cloud(3, 20, 30)
    plane = take_snapshot(points, labels).plane
    means = torch.stack([points[labels == c].mean(dim=0) for c in range(3)])
    assert_close(torch.pdist(plane.centers), torch.pdist(means))
    assert plane.share.sum().item() == pytest.approx(1)
    for c in range(3):
        assert_close(plane.points[plane.point_classes == c].mean(dim=0), plane.centers[c])


def test_anchors_lie_on_their_class_side_of_its_centre():
    """Each anchor is a mean of its class's points, so that it lies among them."""
    points, labels = cloud(3, 20, 30)
    plane = take_snapshot(points, labels).plane
    assert plane.anchors.shape == (MOST_DIRECTIONS, 3, 2)
    for c in range(3):
        own = plane.points[plane.point_classes == c]
        anchors = plane.anchors[:, c][~plane.anchors[:, c].isnan().any(dim=1)]
        assert len(anchors)
        assert (anchors >= own.amin(dim=0) - 1e-9).all()
        assert (anchors <= own.amax(dim=0) + 1e-9).all()


def test_dimension_of_each_class_is_its_participation_ratio():
    points, labels = cloud(3, 20, 6)
    shot = take_snapshot(points, labels)
    assert_close(shot.class_dimensions[1], gm.participation_ratio(points[labels == 1]))


def test_many_classes_and_points_stay_a_small_picture():
    points, labels = cloud(MOST_CLASSES + 3, MOST_POINTS + 1, 5)
    shot = take_snapshot(points, labels, directions=5)
    assert len(shot.classes) == len(shot.class_dimensions) == MOST_CLASSES + 3
    assert len(shot.plane.centers) == MOST_CLASSES
    assert len(shot.plane.points) == MOST_CLASSES * MOST_POINTS


@pytest.mark.parametrize("units", [1, 2])
def test_two_classes_or_one_unit_have_a_second_axis_without_variance(units):
    points, labels = cloud(2, 5, units)
    plane = take_snapshot(points, labels).plane
    assert plane.points.shape == (10, 2)
    assert plane.share.tolist() == pytest.approx([1, 0], abs=1e-12)


def test_a_class_of_one_point_and_centres_in_one_place_are_nan_not_an_error():
    points = torch.tensor([[1.0, 0], [-1, 0], [0, 1], [0, -1], [0, 0]])
    shot = take_snapshot(points, torch.tensor([0, 0, 1, 1, 2]), directions=4)
    assert math.isnan(shot.class_dimensions[2])
    assert shot.center_cosines.isnan().all()
    assert shot.plane.share.tolist() == [0, 0]


def test_a_reference_comes_back_from_a_checkpoint(tmp_path):
    shot = take_snapshot(*cloud(3, 5, 4), layer="fc", step=7, epoch=2)
    torch.save(shot.state_dict(), tmp_path / "state.pt")
    back = Snapshot(**torch.load(tmp_path / "state.pt", weights_only=True))
    assert back.when == "epoch 2 (step 7)"
    assert back.plane is None
    assert_close(back.eigenvalues, shot.eigenvalues)


def test_a_monitor_takes_snapshots_of_its_own_points_where_asked():
    data = torch.utils.data.TensorDataset(torch.randn(60, 6), torch.arange(60) % 3 + 4)
    model = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.ReLU(), torch.nn.Linear(8, 7))
    probe = gm.ProbeSet.from_dataset(data, per_class=10)
    monitor = gm.GeometryMonitor(probe, markers=["participation_ratio"], panel=gm.Panel(["participation_ratio"]))
    passes = []
    model.register_forward_hook(lambda *_: passes.append(1))
    monitor.measure(model, step=0)  # also runs two points alone: do features depend on the batch?
    assert len(passes) == 3  # and a few points to find the layer
    passes.clear()
    monitor.measure(model, step=1)
    assert monitor.snapshots == {}
    alone = len(passes)
    plain, *_ = monitor.measure(model, step=2, epoch=1)
    drawn, *_ = monitor.measure(model, step=2, epoch=1, snapshots=True)
    assert len(passes) == 3 * alone  # no second forward pass
    assert drawn.value == plain.value
    shot = monitor.snapshots["penultimate"]
    assert shot.classes == (4, 5, 6)
    assert (shot.step, shot.epoch, len(shot.eigenvalues)) == (2, 1, 8)
    spread = shot.eigenvalues
    assert drawn.value == pytest.approx(float(spread.sum() ** 2 / spread.square().sum()))


def test_a_snapshot_that_fails_is_told_once_and_the_measurement_stands(monkeypatch):
    data = torch.utils.data.TensorDataset(torch.randn(40, 6), torch.arange(40) % 2)
    model = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    monitor = gm.GeometryMonitor(
        gm.ProbeSet.from_dataset(data, per_class=10), geometry={"directions": 10}, on_error="raise"
    )
    monkeypatch.setattr("geomonitor.measure.snapshot.take_snapshot", lambda *_, **__: 1 / 0)
    with pytest.warns(gm.GeomonitorWarning, match="no snapshot of layer 'penultimate'"):
        records = monitor.measure(model, step=1, snapshots=True)
    assert all(math.isfinite(r.value) for r in records if r.marker == "dimension")
    monitor.measure(model, step=2, snapshots=True)  # a second warning would be an error
    assert monitor.snapshots == {}
