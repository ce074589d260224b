"""Whatever a public function or option is given, it works or raises an error of geomonitor that says what to write."""

from __future__ import annotations

import inspect
import math
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import nn

import geomonitor as gm
from geomonitor.decide.compare import bound, compare_runs
from geomonitor.decide.scan import moments
from geomonitor.history.runs import load_run
from geomonitor.history.stability import Stability, stability_of
from geomonitor.markers.coherence import coherence, coherence_of
from geomonitor.markers.factors import linear_factors
from geomonitor.measure.network_coherence import network_coherence
from geomonitor.metrics import point_metrics
from geomonitor_integrations.lightning import GeometryCallback, GeometryEarlyStopping

WRONG: dict[str, Any] = {
    "None": None,
    "text": "x",
    "no text": "",
    "bytes": b"x",
    "a fraction": 1.5,
    "NaN": math.nan,
    "infinity": -math.inf,
    "negative": -1,
    "huge": 10**30,
    "True": True,
    "an object": object(),
    "a class": int,
    "a class of geomonitor": gm.DropFromReference,
    "a function of nothing": lambda: None,
    "a function of nine": lambda a, b, c, d, e, f, g, h, i: None,
    "a module": nn.Linear(2, 2),
    "an empty list": [],
    "texts": ["x"],
    "numbers": [1.5, -1],
    "an empty mapping": {},
    "a mapping": {"x": object()},
    "a mapping of None": {None: None},
    "an array": np.zeros((2, 0, 3)),
    "a tensor": torch.full((2,), math.nan),
    "a complex tensor": torch.ones(4, 4, dtype=torch.complex64),
}
X, Y = torch.randn(80, 6, generator=torch.Generator().manual_seed(1)), torch.arange(80) % 4
DATASET = torch.utils.data.TensorDataset(X, Y)
TEXTS = torch.utils.data.TensorDataset(torch.arange(400).view(40, 10) % 7, torch.arange(400).view(40, 10) % 3)
PROBE = gm.ProbeSet.from_dataset(DATASET, per_class=10)
FOLDER = Path(tempfile.gettempdir())


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 4))


MODEL = model()


def monitor(**options: Any) -> gm.GeometryMonitor:
    return gm.GeometryMonitor(PROBE, **{"panel": None, "markers": ["rankme"], **options})


def run() -> gm.MonitoredRun:
    started = gm.MonitoredRun(monitor())
    started.start(MODEL)
    return started


def passive() -> gm.GeometryMonitor:
    return gm.GeometryMonitor(gm.ValidationProbe(classes=4, per_class=5), panel=None, markers=["rankme"])


def history() -> gm.History:
    names = ["capacity", "dimension", "radius", "utility"]
    return gm.History(gm.Record(step, step, "fc", name, 1.0 + step, 0.1) for step in range(4) for name in names)


def healthy() -> gm.History:
    return gm.History(gm.Record(step, step, "fc", "dimension", 1.0 + step / 100, 0.1) for step in range(12))


def captured(**arguments: Any) -> None:
    with gm.captured(**arguments):
        MODEL(X)


def routed(**arguments: Any) -> None:
    with gm.captured_routing(**arguments):
        MODEL(X)


def routing() -> dict[str, Any]:
    with gm.captured_routing(MODEL, {"2": 1}, items=80) as found:
        MODEL(X)
    return found


def measured_with(**options: Any) -> None:
    gm.GeometryMonitor(**{"markers": ["rankme"], "panel": None, **options}).measure(MODEL, step=1)


class Case(NamedTuple):
    """A call that works, whose arguments are replaced one after the other."""

    call: Callable[..., Any]
    right: dict[str, Any]
    signature: Any
    """whose parameters are replaced"""
    untried: tuple[str, ...] = ()


def case(call: Callable[..., Any], of: Any = None, untried: tuple[str, ...] = (), **right: Any) -> Case:
    return Case(call, right, of or call, untried)


METRICS = (
    gm.ManifoldGeometry,
    gm.FeatureSpectrum,
    gm.ClassStructure,
    gm.PointStatistics,
    gm.LogitStatistics,
    gm.InstanceStructure,
)
SPECTRUM = (gm.effective_rank, gm.numerical_rank, gm.participation_ratio, gm.rankme, gm.stable_rank)
SHOT = gm.take_snapshot(X, Y)
SERIES = history().series("fc", "dimension")
CASES: dict[str, Case] = {
    "ProbeSet.from_dataset": case(gm.ProbeSet.from_dataset, dataset=DATASET, per_class=5),
    "ProbeSet.from_unlabelled": case(gm.ProbeSet.from_unlabelled, dataset=DATASET, samples=20),
    "TokenProbe.from_dataset": case(gm.TokenProbe.from_dataset, dataset=TEXTS, per_class=5),
    "TokenProbe.from_next_tokens": case(gm.TokenProbe.from_next_tokens, dataset=TEXTS, per_class=5, classes=3),
    "TokenProbe.from_unlabelled": case(gm.TokenProbe.from_unlabelled, dataset=TEXTS, samples=20),
    "Views": case(gm.Views, kind="noise"),
    "ProbeSet.loader": case(lambda **k: list(PROBE.loader(**k)), PROBE.loader),
    "TransferProbe.from_dataset": case(gm.TransferProbe.from_dataset, dataset=DATASET, per_class=10),
    "ValidationProbe": case(gm.ValidationProbe, classes=4),
    "GeometryOptions": case(gm.GeometryOptions),
    "GeometryOptions.of": case(gm.GeometryOptions.of, given={}),
    "Panel": case(gm.Panel, untried=("custom",)),
    "Panel.from_dict": case(gm.Panel.from_dict, saved=gm.Panel().to_dict()),
    **{kind.__name__: case(kind) for kind in (gm.Cusum, gm.DropFromReference, gm.Trend)},
    "ReferenceRuns": case(gm.ReferenceRuns, reference=[healthy()] * 8),
    "GeometryMonitor": case(measured_with, gm.GeometryMonitor, probe=PROBE),
    "GeometryMonitor.measure": case(monitor().measure, model=MODEL, step=1),
    "GeometryMonitor.validation_pass": case(
        lambda **k: passive().validation_pass(**k), gm.GeometryMonitor.validation_pass, model=MODEL
    ),
    "GeometryMonitor.open_history": case(
        lambda **k: monitor().open_history(**k), gm.GeometryMonitor.open_history, path=FOLDER / "geometry.csv"
    ),
    "GeometryMonitor.explain": case(monitor().explain, verdict=gm.DropFromReference()(SERIES)),
    "GeometryMonitor.set_reference": case(monitor().set_reference),
    "GeometryMonitor.state_dict": case(monitor().state_dict),
    "GeometryMonitor.load_state_dict": case(monitor().load_state_dict, state=monitor().state_dict()),
    "MonitoredRun": case(gm.MonitoredRun, monitor=monitor()),
    "MonitoredRun.start": case(lambda **k: gm.MonitoredRun(monitor()).start(**k), gm.MonitoredRun.start, model=MODEL),
    "MonitoredRun.measure": case(lambda **k: run().measure(**k), gm.MonitoredRun.measure, model=MODEL, step=1),
    "MonitoredRun.due_after_epoch": case(run().due_after_epoch, epoch=1, untried=("last",)),
    "MonitoredRun.due_after_batch": case(run().due_after_batch, step=1),
    "MonitoredRun.due_after_validation": case(run().due_after_validation, step=1, epoch=1),
    "MonitoredRun.look_at_gradients": case(run().look_at_gradients, parameters=[], step=1),
    "MonitoredRun.open_validation": case(gm.MonitoredRun(passive()).open_validation, model=MODEL),
    "MonitoredRun.stop_reason": case(run().stop_reason),
    "MonitoredRun.load_state_dict": case(run().load_state_dict, state=run().state_dict()),
    "History": case(gm.History, records=list(history())),
    "History.append": case(lambda **k: gm.History().append(**k), gm.History.append, records=list(history())),
    "History.series": case(history().series, layer="fc", marker="dimension"),
    "History.markers": case(history().markers, layer="fc"),
    "History.load": case(gm.History.load, path=Path(__file__).parent / "data/version_0_1_0_dev0/geometry.csv"),
    "History.open": case(lambda **k: gm.History().open(**k), gm.History.open, path=FOLDER / "geometry.csv",
                         untried=("protocol", "panel")),
    "History.state_dict": case(history().state_dict),
    "History.load_state_dict": case(gm.History().load_state_dict, state=history().state_dict()),
    "History.plot": case(history().plot),
    "captured": case(captured, gm.captured, model=MODEL),
    "captured_routing": case(routed, gm.captured_routing, model=MODEL, routers={"2": 1}, items=80),
    "RoutingStatistics": case(gm.RoutingStatistics, layers=1, experts=4),
    "RoutingStatistics.update": case(
        lambda **k: gm.RoutingStatistics(1, 4).update(**k), gm.RoutingStatistics.update, routing=routing()
    ),
    "manifold_geometry": case(gm.manifold_geometry, features=X, labels=Y, directions=10, untried=("ranks",)),
    "neural_collapse": case(gm.neural_collapse, features=X, labels=Y),
    **{function.__name__: case(function, features=X) for function in SPECTRUM},
    "take_snapshot": case(gm.take_snapshot, features=X, labels=Y),
    **{kind.__name__: case(kind, **({} if kind is gm.FeatureSpectrum else {"num_classes": 4})) for kind in METRICS},
    **{
        f"{kind.__name__}.update": case(
            lambda kind=kind, **k: (gm.FeatureSpectrum() if kind is gm.FeatureSpectrum else kind(4)).update(**k),
            kind.update,
            features=X[:, :4],
            labels=Y,
        )
        for kind in METRICS
    },
    "GradientCoherence": case(gm.GradientCoherence, num_classes=4),
    "GradientCoherence.update": case(
        lambda **k: gm.GradientCoherence(4).update(**k), gm.GradientCoherence.update,
        features=X, logits=X[:, :4], labels=Y,
    ),
    "FactorStructure": case(gm.FactorStructure, shape=(2, 3)),
    "FactorStructure.update": case(
        lambda **k: gm.FactorStructure((4, 4)).update(**k), gm.FactorStructure.update, features=X, first=Y, second=Y
    ),
    "coherence": case(coherence, features=X, logits=X[:, :4], labels=Y),
    "coherence_of": case(coherence_of, features=X, residuals=X),
    "network_coherence": case(network_coherence, model=MODEL, probe=PROBE, points=4,
                              untried=("model",)),
    "linear_factors": case(linear_factors, features=X, first=torch.arange(80) // 40, second=Y),
    "stability_of": case(stability_of, series=SERIES),
    "Stability": case(Stability),
    "Stability.next_task": case(lambda **k: Stability().next_task(**k), Stability.next_task, step=3),
    "Stability.update": case(lambda **k: Stability().update(**k), Stability.update, step=3, value=0.5),
    "plots.plot_history": case(gm.plots.plot_history, history=history()),
    "plots.plot_decomposition": case(gm.plots.plot_decomposition, history=history(), layer="fc"),
    "plots.plot_spectrum": case(gm.plots.plot_spectrum, snapshot=SHOT),
    "plots.plot_class_matrix": case(gm.plots.plot_class_matrix, snapshot=SHOT),
    "plots.plot_class_clouds": case(gm.plots.plot_class_clouds, snapshot=SHOT),
    "plots.plot_class_dimensions": case(gm.plots.plot_class_dimensions, snapshot=SHOT),
    "plots.figure_of": case(gm.plots.figure_of, name="spectrum", snapshot=SHOT),
    "GeometryCallback": case(GeometryCallback, probe=PROBE, panel=None, markers=["rankme"]),
    "GeometryEarlyStopping": case(GeometryEarlyStopping),
    "bound": case(bound, text="nc1=0.5", side="max", untried=("side",)),
}  # fmt: skip
TRIED = [
    (name, parameter.name)
    for name, found in CASES.items()
    for parameter in inspect.signature(found.signature).parameters.values()
    if parameter.kind not in {parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL}
    and parameter.name not in {"self", *found.untried}
]
NO_CASE = {
    # constants, modules and errors
    "DETECTORS", "MARKERS", "MARKER_GROUPS", "plots", "GeometryDeclineWarning", "GeomonitorError", "GeomonitorWarning",
    "InputError", "MeasurementError",
    # a protocol, and plain tuples that the library makes itself
    "Detector", "EffectiveGeometry", "NeuralCollapse", "Record", "Series", "Snapshot", "Status", "Verdict",
}  # fmt: skip


def test_every_public_name_is_tried():
    assert set(gm.__all__) <= {name.split(".")[0] for name in CASES} | NO_CASE
    assert {f"plots.{name}" for name in gm.plots.__all__ if callable(getattr(gm.plots, name))} <= set(CASES)


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    yield
    import matplotlib.pyplot as plt

    plt.close("all")


@pytest.mark.parametrize("name", CASES)
def test_the_right_arguments_work(name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        CASES[name].call(**CASES[name].right)


@pytest.mark.parametrize(("name", "parameter"), TRIED)
def test_wrong_arguments_are_named(name, parameter):
    call, right, *_ = CASES[name]
    faults = []
    for kind, value in WRONG.items():
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                call(**{**right, parameter: value})
        except FileNotFoundError as error:
            if parameter != "path":
                faults.append(f"{kind}: {error}")
        except gm.GeomonitorError as error:
            if len(str(error).split()) < 5:  # what was expected, and what was found
                faults.append(f"{kind}: {error}")
        except Exception as error:  # noqa: BLE001 - collected, to show all at once
            trace = error.__traceback__
            while trace is not None and trace.tb_next is not None:
                trace = trace.tb_next
            place = trace and f"{Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}"
            faults.append(f"{kind}: {type(error).__name__} {str(error)[:80]} ({place})")
    assert not faults, "\n".join(faults)


LATE: list[dict[str, Any]] = [
    {"panel": gm.DropFromReference()}, {"panel": gm.Panel}, {"geometry": {"directions": 1.5}},
    {"geometry": {"seed": 2**70}}, {"geometry": {"nothing": 1}}, {"forward": 3}, {"forward": lambda m: m},
    {"batch_size": 1.5}, {"shifts": {"a": 3}}, {"shifts": {"a": lambda: 0}}, {"shifts": {"": lambda x: x}},
    {"shifts": {"../x": lambda x: x}}, {"pool": lambda t: t}, {"layers": {"a": None}}, {"layers": {1: "2:input"}},
    {"max_overhead": True}, {"on_error": "ignore"}, {"markers": [3]},
]  # fmt: skip


@pytest.mark.parametrize("options", LATE, ids=[str(list(options)) for options in LATE])
def test_options_are_refused_where_they_are_given_and_not_at_the_first_measurement(options):
    with pytest.raises(gm.InputError):
        gm.GeometryMonitor(PROBE, **options)


@pytest.mark.parametrize(
    "make",
    [
        lambda: gm.DropFromReference(patience_checks=math.nan),
        lambda: gm.Panel(detector=gm.DropFromReference),
        lambda: gm.MonitoredRun(monitor(), every_n_epochs=math.nan),
        lambda: gm.MonitoredRun(monitor(), on_alarm=lambda verdict: None),
        lambda: gm.MonitoredRun(monitor(), on_alarm=[lambda verdict, text: None, 3]),
        lambda: gm.ProbeSet.from_dataset(DATASET, per_class=5, allow_fewer="no"),
        lambda: gm.ProbeSet.from_dataset(dict.fromkeys(range(8), 0)),
        lambda: gm.ProbeSet.from_dataset(torch.utils.data.TensorDataset),
        lambda: GeometryCallback(PROBE, figures_every_n=1.5),
        lambda: GeometryCallback(PROBE, figures_every_n="2"),
        lambda: GeometryCallback(PROBE, directory=True),
        lambda: moments([]),
        lambda: load_run("nothing here"),
        lambda: compare_runs(load_run("nothing here"), load_run("nor here")),
        lambda: point_metrics.LogitStatistics(4, columns=[0, 1, 2]),
    ],
)
def test_what_can_never_work(make):
    with pytest.raises(gm.InputError):
        make()
