"""Error bands, the decomposition of the capacity and the times of alarms, from a history."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import geomonitor as gm
from geomonitor.plots.curves import band, decomposition

PARTS = ("capacity", "dimension", "radius", "utility")


def history_of_clouds(*noises: float) -> gm.History:
    """One measurement for each noise around the same three centres."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(60) % 3
    centers = torch.randn(3, 10, generator=generator)
    records = []
    for step, noise in enumerate(noises):
        points = centers[labels] + noise * torch.randn(60, 10, generator=generator)
        measured = gm.manifold_geometry(points, labels, directions=50)
        for name in PARTS:
            error = float(getattr(measured.standard_error, name))
            records.append(gm.Record(10 * step, step, "fc", name, float(getattr(measured, name)), error))
    return gm.History(records)


def test_the_parts_add_up_to_the_capacity_at_every_step():
    parts = decomposition(history_of_clouds(2.0, 1.0, 0.2), "fc")
    assert parts.steps.tolist() == [0, 10, 20]
    assert parts.epochs.tolist() == [0, 1, 2]
    whole = parts.log_utility + parts.log_radius_factor + parts.minus_log_dimension
    np.testing.assert_allclose(whole, parts.log_capacity, rtol=0, atol=1e-12)  # exact up to rounding


def test_changes_count_from_the_reference_and_skip_a_failed_first_measurement():
    history = history_of_clouds(2.0, 1.0, 0.2)
    changes = decomposition(history, "fc").since(10)
    assert [part[1] for part in changes[2:]] == [0, 0, 0, 0]
    assert changes.log_capacity[2] == pytest.approx(
        math.log(history.series("fc", "capacity").values[2] / history.series("fc", "capacity").values[1])
    )
    history.append([gm.Record(0, 0, "fc", name, math.nan) for name in PARTS])
    changes = decomposition(history, "fc").since()
    assert np.isnan(changes.log_capacity[0])
    assert changes.log_capacity[1] == 0
    with pytest.raises(gm.InputError, match="a measurement at step 7"):
        decomposition(history, "fc").since(7)


def test_only_steps_with_all_four_are_decomposed_and_a_missing_one_is_named():
    history = history_of_clouds(2.0, 1.0)
    history.append([gm.Record(99, 9, "fc", "capacity", 1.0)])
    assert decomposition(history, "fc").steps.tolist() == [0, 10]
    with pytest.raises(gm.InputError, match=r"lacks .*'radius'"):
        decomposition(gm.History([gm.Record(1, 0, "fc", "capacity", 1.0)]), "fc")


def test_a_band_is_two_standard_errors_and_closes_where_there_are_none():
    history = gm.History([gm.Record(1, 0, "fc", "x", 3.0, 0.5), gm.Record(2, 0, "fc", "x", 4.0)])
    lower, upper = band(history.series("fc", "x"))
    assert lower.tolist() == [2, 4]
    assert upper.tolist() == [4, 4]
