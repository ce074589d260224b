"""What a notebook shows: short, with the settings, and with names escaped."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import geomonitor as gm


def monitor() -> gm.GeometryMonitor:
    data = TensorDataset(torch.randn(80, 6, generator=torch.Generator().manual_seed(0)), torch.arange(80) % 4)
    made = gm.GeometryMonitor(gm.ProbeSet.from_dataset(data, per_class=20), geometry={"directions": 20})
    torch.manual_seed(0)
    made.measure(nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 4)), step=10, epoch=0)
    return made


@pytest.mark.parametrize(
    ("shown", "parts"),
    [
        (lambda: gm.History(), ["History(0 measurements)"]),
        (lambda: monitor().history, ["History(1 measurements up to step 10, layers: penultimate)"]),
        (monitor, ["layers='penultimate'", "'dimension'", "1 measurement so far: not judged yet"]),
        (lambda: monitor().probe, ["ProbeSet("]),
        (
            lambda: gm.Verdict(True, "fc", "dimension", 1.2, 2.0, since_step=20),
            ["Verdict(alarm of 'fc' since step 20: dimension 1.2, expected 2)"],
        ),
        (
            lambda: gm.manifold_geometry(torch.randn(40, 9), torch.arange(40) % 4, directions=20),
            ["EffectiveGeometry(capacity=", "dimension=", "20 directions)"],
        ),
        (lambda: gm.ClassStructure(num_classes=3), ["ClassStructure(num_classes=3)"]),
        (lambda: gm.FeatureSpectrum(), ["FeatureSpectrum()"]),
    ],
)
def test_reprs_are_short_and_show_the_settings(shown, parts):
    text = repr(shown())
    assert len(text) < 700
    assert all(part in text for part in parts), text


def test_a_notebook_shows_the_status_and_reads_no_markup():
    assert "Not judged yet" in monitor()._repr_html_()
    history = gm.History([gm.Record(1, 0, "<script>", "dimension", 2.0)])
    assert "<script>" not in history._repr_html_()
    assert "Judged from measurement" in history._repr_html_()
