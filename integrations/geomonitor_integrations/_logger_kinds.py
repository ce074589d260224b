"""How each kind of logger takes pictures, texts and layouts. A kind that is not here gets the scalars alone."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from geomonitor.history.records import Record
from geomonitor.plots.curves import decomposed
from geomonitor.plots.drawing import BAND_SIGMAS

BANDS, DECOMPOSITION = "geometry_bands", "geometry_decomposition"
BANDED = ("dimension", "utility")
FACTORS = ("capacity", "utility", "radius", "dimension")
PARTS = ("log_capacity", "log_utility", "log_radius_factor", "minus_log_dimension")
COLLAPSE = ("nc1", "nc1_ratio", "cdnv", "nc2_equinorm", "nc2_equiangular", "nc3", "nc4", "dead_units")


class Sink:
    """What a logger shows beside scalars; a kind overrides what it can."""

    def __init__(self, logger: Any, name: str) -> None:
        self.logger = logger
        self.name = name
        """apart from that of every other logger of the Trainer"""

    def protocol(self, tag: str, protocol: Mapping[str, Any]) -> None:
        """What was measured, and how."""

    def layout(self, records: Sequence[Record]) -> None:
        """Arrange the charts; called once, with the first records."""

    def bands(self, records: Sequence[Record], step: int) -> None:
        """Error bands, and what else the charts of the layout need."""

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Some more numbers."""
        self.logger.log_metrics(dict(values), step=step)

    def picture(self, tag: str, picture: NDArray[np.uint8], step: int) -> None:
        """A picture ``(height, width, 3)``."""

    def alarm(self, tag: str, title: str, text: str, step: int) -> None:
        """The words of a verdict."""


class TensorBoardSink(Sink):
    """TensorBoard: a custom-scalars layout, images, and Markdown."""

    def protocol(self, tag: str, protocol: Mapping[str, Any]) -> None:
        """As a block of code: Markdown would swallow the line ends."""
        text = "\n".join("    " + line for line in json.dumps(protocol, indent=2).splitlines())
        self.logger.experiment.add_text(tag, text, 0)

    def layout(self, records: Sequence[Record]) -> None:
        """See :func:`layout_of`."""
        layout = layout_of(records)
        if layout:
            self.logger.experiment.add_custom_scalars(layout)

    def bands(self, records: Sequence[Record], step: int) -> None:
        """Under tags of their own, so that value, lower and upper always have the same steps."""
        for tag, value in (band_scalars(records) | decomposition_scalars(records)).items():
            self.logger.experiment.add_scalar(tag, value, step)

    def picture(self, tag: str, picture: NDArray[np.uint8], step: int) -> None:
        """Into the Images tab."""
        self.logger.experiment.add_image(tag, picture, step, dataformats="HWC")

    def alarm(self, tag: str, title: str, text: str, step: int) -> None:
        """Into the Text tab; a blank line makes a paragraph."""
        self.logger.experiment.add_text(tag, text.replace("\n", "\n\n"), step)


class WandbSink(Sink):
    """Weights & Biases: images, a table of alarms, an alert (which reaches those who switched alerts on)."""

    def protocol(self, tag: str, protocol: Mapping[str, Any]) -> None:
        """Into the configuration of the run."""
        self.logger.experiment.config.update({tag.replace("/", "_"): dict(protocol)}, allow_val_change=True)

    def picture(self, tag: str, picture: NDArray[np.uint8], step: int) -> None:
        """As media of the step."""
        self.logger.log_image(tag, [picture], step=step)

    def alarm(self, tag: str, title: str, text: str, step: int) -> None:
        """As an alert and as a table."""
        self.logger.experiment.alert(title=title, text=text, level="WARN")
        self.logger.log_text(f"{tag}_text", columns=["step", "alarm", "text"], data=[[step, title, text]], step=step)


class MLFlowSink(Sink):
    """MLflow: images by step, and text files among the artifacts."""

    def protocol(self, tag: str, protocol: Mapping[str, Any]) -> None:
        """As a file of JSON."""
        self._write(f"{tag}.json", json.dumps(protocol, indent=2))

    def picture(self, tag: str, picture: NDArray[np.uint8], step: int) -> None:
        """As an image of the step."""
        client, run = self.logger.experiment, self.logger.run_id
        client.log_image(run, picture, key=re.sub(r"[^\w/. -]", "_", tag), step=step)

    def alarm(self, tag: str, title: str, text: str, step: int) -> None:
        """As a file of text."""
        self._write(f"{tag}_step_{step}.txt", text + "\n")

    def _write(self, path: str, text: str) -> None:
        self.logger.experiment.log_text(self.logger.run_id, text, re.sub(r"[^\w/. -]", "_", path))


def sink_of(logger: Any, name: str) -> Sink | None:
    """The sink of a logger; None for one that takes scalars alone."""
    kind = _kind(logger)
    return None if kind is None else kind(logger, name)


def has_pictures(logger: Any) -> bool:
    """Whether a logger can show pictures; does not touch it, so that ranks without an experiment can ask."""
    return _kind(logger) is not None


def _kind(logger: Any) -> type[Sink] | None:
    names = {base.__name__ for base in type(logger).__mro__}
    kinds: dict[str, type[Sink]] = {
        "TensorBoardLogger": TensorBoardSink,
        "WandbLogger": WandbSink,
        "MLFlowLogger": MLFlowSink,
    }
    return next((kind for name, kind in kinds.items() if name in names), None)


def layout_of(records: Sequence[Record]) -> dict[str, dict[str, list[Any]]]:
    """A layout for ``add_custom_scalars``: categories for each layer, charts for the markers that were measured.

    TensorBoard reads the tags of a multiline chart as regular expressions that must match from the start, those of a
    margin chart letter by letter. It puts the multiline charts of a category before the margin charts whatever their
    order is, hence a category for each kind.

    >>> layout_of([Record(1, 0, "fc", "accuracy", 0.5)])
    {'fc: collapse, accuracy, capacity': {'accuracy on the probe set': ['Multiline', ['(.*-)?geometry/fc/accuracy$']]}}
    """
    layout: dict[str, dict[str, list[Any]]] = {}
    for layer in dict.fromkeys(record.layer for record in records if record.layer):
        measured = [record.marker for record in records if record.layer == layer]
        bands: dict[str, list[Any]] = {}
        charts: dict[str, list[Any]] = {}
        for marker in (name for name in BANDED if name in measured):
            tags = [f"{BANDS}/{_plain(layer)}/{marker}/{limit}" for limit in ("value", "lower", "upper")]
            bands[f"{marker}, with {BAND_SIGMAS:g} standard errors"] = ["Margin", tags]
        accuracies = [name for name in measured if name == "accuracy" or name.startswith("accuracy_under_")]
        for title, markers in (
            ("collapse", [name for name in COLLAPSE if name in measured]),
            ("accuracy on the probe set", accuracies),
        ):
            if markers:
                charts[title] = ["Multiline", [_pattern(f"geometry/{layer}/{marker}") for marker in markers]]
        if set(FACTORS) <= set(measured):
            tags = [_pattern(f"{DECOMPOSITION}/{_plain(layer)}/{part}") for part in PARTS]
            charts["log capacity = log utility + log(1 + 1/radius^2) - log dimension"] = ["Multiline", tags]
        categories = {f"{layer}: {' and '.join(BANDED)}": bands, f"{layer}: collapse, accuracy, capacity": charts}
        layout |= {title: shown for title, shown in categories.items() if shown}
    return layout


def band_scalars(records: Sequence[Record]) -> dict[str, float]:
    """Value and limits of the error band of each marker in ``BANDED``, by tag."""
    scalars = {}
    for record in records:
        if record.layer and record.marker in BANDED:
            half = 0.0 if math.isnan(record.standard_error) else BAND_SIGMAS * record.standard_error
            for limit, value in (("value", 0.0), ("lower", -half), ("upper", half)):
                scalars[f"{BANDS}/{_plain(record.layer)}/{record.marker}/{limit}"] = record.value + value
    return scalars


def decomposition_scalars(records: Sequence[Record]) -> dict[str, float]:
    """Logarithms of the capacity and its factors of each layer that has all four, by tag."""
    scalars = {}
    for layer in dict.fromkeys(record.layer for record in records if record.layer):
        of = {record.marker: np.array(record.value) for record in records if record.layer == layer}
        if set(FACTORS) <= set(of):
            with np.errstate(divide="ignore", invalid="ignore"):
                parts = decomposed(*(of[name] for name in FACTORS))
            for name, part in zip(PARTS, parts, strict=True):
                scalars[f"{DECOMPOSITION}/{_plain(layer)}/{name}"] = float(part)
    return scalars


def _plain(layer: str) -> str:
    """An alias in letters that no writer of TensorBoard replaces."""
    return re.sub(r"[^\w.-]", "_", layer)


def _pattern(tag: str) -> str:
    """A regular expression for a tag, whether or not a logger put a prefix before it or replaced odd letters."""
    return "(.*-)?" + re.sub(r"[^\w/-]", ".", tag) + "$"
