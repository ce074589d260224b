"""Plots, by the data that they draw."""

from __future__ import annotations

import itertools
import sys

import numpy as np
import pytest
import torch

import geomonitor as gm
from geomonitor.measure.snapshot import take_snapshot
from geomonitor.plots import (
    FIGURES,
    figure_of,
    plot_class_clouds,
    plot_class_dimensions,
    plot_class_matrix,
    plot_decomposition,
    plot_spectrum,
)
from geomonitor.plots.drawing import look, pixels, plot_values

matplotlib = pytest.importorskip("matplotlib")


@pytest.fixture(autouse=True)
def quiet_pyplot():
    """No windows, and nothing left open by the test."""
    import matplotlib.pyplot as plt

    before = matplotlib.get_backend()
    plt.switch_backend("agg")
    yield
    plt.close("all")
    plt.switch_backend(before)


def snapshot(noise: float = 0.5, *, step: int = 10, classes: int = 4):
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(classes).repeat_interleave(15)
    points = 3 * torch.randn(classes, 20, generator=generator)[labels]
    return take_snapshot(points + noise * torch.randn(len(labels), 20, generator=generator), labels, step=step, epoch=1)


def history(alarm_from: int = 30) -> gm.History:
    records = []
    for step in (10, 20, 30, 40):
        for layer, shift in (("fc", 0.0), ("conv", 5.0)):
            value = float("nan") if (step, layer) == (20, "conv") else shift + step / 10
            records.append(gm.Record(step, None, layer, "dimension", value, 0.25))
            records.append(gm.Record(step, None, layer, "nc1", 1 / step))
        records.append(gm.Record(step, None, "fc", "alarm", float(step >= alarm_from)))
        records.append(gm.Record(step, None, "", "seconds", 0.1))
    return gm.History(records)


def lines(ax) -> dict[str, np.ndarray]:
    """Ordinates by label."""
    return {line.get_label(): np.asarray(line.get_ydata(), dtype=float) for line in ax.get_lines()}


def test_a_panel_for_each_marker_and_a_curve_for_each_layer():
    _, panels = history().plot()
    assert [ax.get_title() for ax in panels] == ["dimension", "nc1"]
    assert lines(panels[0])["fc"].tolist() == [1, 2, 3, 4]
    np.testing.assert_array_equal(lines(panels[0])["conv"], [6, np.nan, 8, 9])  # a gap where the measurement failed


def test_bands_are_two_standard_errors_where_there_are_any():
    _, (dimension, nc1) = history().plot(layers="fc")
    (drawn,) = dimension.collections
    corners = drawn.get_paths()[0].vertices
    at_20 = corners[corners[:, 0] == 20, 1]
    assert (at_20.min(), at_20.max()) == (1.5, 2.5)
    assert not nc1.collections


def test_the_alarm_is_marked_where_it_rose_and_lasts_to_the_end():
    _, (ax,) = history(alarm_from=30).plot("dimension", "fc")
    (ring,) = [line for line in ax.get_lines() if line.get_label() == "alarm at step 30"]
    assert (ring.get_xdata().tolist(), ring.get_ydata().tolist()) == ([30], [3])
    assert "alarm at step 30" in [text.get_text() for text in ax.get_legend().get_texts()]
    (span,) = ax.patches
    assert (span.get_x(), span.get_width()) == (30, 10)
    _, (calm,) = history(alarm_from=99).plot("dimension", "fc")
    assert not calm.patches


@pytest.mark.parametrize("wrong", [{"markers": ["dimention"]}, {"layers": "head"}])
def test_what_the_history_does_not_hold_is_named(wrong):
    with pytest.raises(gm.InputError, match="it holds"):
        history().plot(**wrong)
    with pytest.raises(gm.InputError, match="holds no"):
        gm.History().plot()


def test_the_factors_drawn_add_up_to_the_capacity():
    records = [
        gm.Record(step, None, "fc", name, value)
        for step, values in ((1, (0.5, 2.0, 1.0, 0.5)), (2, (2.4, 1.0, 0.5, 0.48)))
        for name, value in zip(("capacity", "dimension", "radius", "utility"), values, strict=True)
    ]
    records.append(gm.Record(2, None, "fc", "alarm", 1.0))
    _, ax = plot_decomposition(gm.History(records), "fc")
    drawn = lines(ax)
    whole = drawn.pop("capacity (their product)")
    assert whole[0] == 0
    assert whole[1] == pytest.approx(np.log(2.4 / 0.5))
    parts = [drawn[name][1] for name in ("utility", r"$1 + 1 / \mathrm{radius}^2$", "1 / dimension")]
    assert sum(parts) == pytest.approx(whole[1])
    assert drawn["alarm at step 2"].tolist() == [0, 1]  # from the bottom of the axes to the top


def test_spectra_are_logarithmic_and_leave_out_rounding():
    now, before = snapshot(0.5, step=40), snapshot(2.0, step=10)
    flat = now._replace(eigenvalues=torch.tensor([4.0, 2.0, 1e-15]))
    _, ax = plot_spectrum(flat, before)
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "log")
    drawn = lines(ax)
    assert drawn["epoch 1 (step 40)"].tolist() == [4, 2]
    np.testing.assert_array_equal(drawn["reference, epoch 1 (step 10)"], before.eigenvalues.numpy())


def test_the_matrix_shows_each_cosine_under_its_label():
    now = snapshot(classes=4)._replace(classes=(3, 5, 7, 9))
    figure, ax = plot_class_matrix(now)
    (image,) = ax.get_images()
    np.testing.assert_array_equal(image.get_array(), now.center_cosines.numpy())
    assert (image.norm.vmin, image.norm.vmax) == (-1, 1)
    figure.canvas.draw()
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["3", "5", "7", "9"]
    assert float(ax.texts[1].get_text().replace("-.", "-0.")) == pytest.approx(
        float(now.center_cosines[0, 1]), abs=0.006
    )


def test_clouds_hold_the_points_anchors_and_centres_of_the_plane():
    now = snapshot(classes=3)
    _, ax = plot_class_clouds(now)
    points, anchors = ax.collections[2:4]  # of class 1
    np.testing.assert_array_equal(points.get_offsets(), now.plane.points[now.plane.point_classes == 1].numpy())
    np.testing.assert_array_equal(anchors.get_offsets(), now.plane.anchors[:, 1].numpy())
    assert [text.get_text() for text in ax.texts] == ["0", "1", "2"]
    with pytest.raises(gm.InputError, match="reference only"):
        plot_class_clouds(now.as_reference())


def test_dimensions_are_sorted_and_keep_their_class():
    now, before = snapshot(step=40)._replace(class_dimensions=torch.tensor([1.0, 3.0, 2.0, torch.nan])), snapshot()
    figure, ax = plot_class_dimensions(now, before)
    drawn = lines(ax)
    np.testing.assert_array_equal(drawn["epoch 1 (step 40)"], [3, 2, 1, np.nan])
    np.testing.assert_array_equal(drawn["reference, epoch 1 (step 10)"], before.class_dimensions[[1, 2, 0, 3]])
    figure.canvas.draw()
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["1", "2", "0", "3"]
    assert drawn["mean 2.00"].tolist() == [2, 2]


@pytest.mark.parametrize("classes", [2, 40])
def test_every_figure_becomes_pixels_that_pyplot_does_not_know(classes):
    import matplotlib.pyplot as plt

    shot, open_before = snapshot(classes=classes), plt.get_fignums()
    for name in FIGURES:
        picture = pixels(figure_of(name, shot, shot.as_reference()))
        assert picture.dtype == np.uint8
        assert picture.shape[2] == 3
        assert len(np.unique(picture)) > 20
    assert plt.get_fignums() == open_before


def test_a_metric_draws_its_markers_with_their_errors():
    metric = gm.ManifoldGeometry(num_classes=3, per_class=10, directions=20)
    generator = torch.Generator().manual_seed(0)
    metric.update(torch.randn(30, 8, generator=generator), torch.arange(30) % 3)
    figure, ax = metric.plot()
    values = metric.compute()
    names = [name for name in values if not name.endswith("_standard_error")]
    assert [tick.get_text() for tick in ax.get_yticklabels()] == names
    (container,) = ax.containers
    dots, _, (bars,) = container.lines
    np.testing.assert_allclose(dots.get_xdata(), [float(values[name]) for name in names])
    half = 2 * float(values["dimension_standard_error"])
    left, right = bars.get_segments()[names.index("dimension")][:, 0]
    assert right - left == pytest.approx(2 * half)
    again, same = metric.plot(ax=ax)
    assert (again, same) == (figure, ax)


def test_several_results_are_drawn_as_changes():
    _, ax = plot_values([{"a": 2.0, "b": 1.0}, {"a": 3.0, "b": 0.5}])
    assert lines(ax)["a"].tolist() == [0, 0.5]
    assert lines(ax)["b"].tolist() == [0, -0.5]


def test_what_is_drawn_together_differs_in_colour_and_in_line():
    looks = [look(number) for number in range(35)]
    assert len(set(looks)) == 35
    assert all(one.color != two.color and one.line != two.line for one, two in itertools.pairwise(looks))


def test_pictures_leave_the_backend_alone():
    import matplotlib.pyplot as plt

    plt.switch_backend("svg")
    assert pixels(figure_of("spectrum", snapshot())).shape[2] == 3
    assert matplotlib.get_backend() == "svg"


def test_without_matplotlib_the_command_to_get_it_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"pip install .geomonitor\[plots\]"):
        history().plot()
    with pytest.raises(ImportError, match=r"geomonitor\[plots\]"):
        plot_spectrum(snapshot())
