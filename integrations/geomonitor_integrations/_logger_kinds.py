"""How each kind of logger takes pictures, texts and layouts. A kind that is not here gets the scalars alone."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from geomonitor.alarms.status_text import Status
from geomonitor.history.records import ALARM, NOTICE, Record

CHARTS = (
    ("dimension", ("dimension",)),
    ("alarm and notice (1: on)", (ALARM, NOTICE)),
    ("numerical rank", ("numerical_rank",)),
    ("accuracy on the probe set", ("accuracy",)),
    ("utility", ("utility",)),
    ("capacity", ("capacity",)),
    ("collapse", ("nc1", "nc1_ratio", "cdnv", "nc2_equinorm", "nc2_equiangular", "nc3", "nc4")),
)
"""Charts of the layout in their order, and what each shows, if it was measured."""
OVERLAY = "in_alarm"
"""Name of the run of TensorBoard that holds the values during alarms: a second colour on each of their curves."""


class Sink:
    """What a logger shows beside scalars; a kind overrides what it can."""

    def __init__(self, logger: Any, name: str) -> None:
        self.logger = logger
        self.name = name
        """apart from that of every other logger of the Trainer"""

    def settings(self, tag: str, values: Mapping[str, Any]) -> None:
        """What holds for the whole run: how it is measured, its id, and where its history is."""

    def layout(self, records: Sequence[Record]) -> None:
        """Arrange the charts; called once, with the first records."""

    def overlay(self, records: Sequence[Record], step: int) -> None:
        """Mark on the curves that an alarm is on."""

    def status(self, tag: str, status: Status, step: int) -> None:
        """The status of the run, at each measurement."""

    def picture(self, tag: str, picture: NDArray[np.uint8], step: int) -> None:
        """A picture ``(height, width, 3)``."""

    def alarm(self, tag: str, alarm: Status, step: int) -> None:
        """A new alarm."""


class TensorBoardSink(Sink):
    """TensorBoard: a custom-scalars layout, images, and Markdown."""

    def settings(self, tag: str, values: Mapping[str, Any]) -> None:
        """As a block of code: Markdown would swallow the line ends."""
        text = "\n".join("    " + line for line in json.dumps(values, indent=2).splitlines())
        self.logger.experiment.add_text(tag.replace("geometry/", "settings/geometry/", 1), text, 0)

    def layout(self, records: Sequence[Record]) -> None:
        """See :func:`layout_of`."""
        layout = layout_of(records)
        if layout:
            self.logger.experiment.add_custom_scalars(layout)

    def overlay(self, records: Sequence[Record], step: int) -> None:
        """As a run of its own, made by the first alarm, with the same tags: no further tag stands in the list."""
        layers = {record.layer for record in records if record.marker == ALARM and record.value == 1}
        shown = {name for _, names in CHARTS for name in names} - {ALARM, NOTICE}
        values = {r.key: r.value for r in records if r.layer in layers and r.marker in shown}
        if values:
            experiment, folder = self.logger.experiment, str(Path(self.logger.log_dir, OVERLAY))
            writers = experiment.all_writers  # those that it flushes and closes with its own file
            if folder not in writers:
                writers[folder] = type(experiment)(log_dir=folder)
            for key, value in values.items():
                writers[folder].add_scalar(key, value, step)

    def picture(self, tag: str, picture: NDArray[np.uint8], step: int) -> None:
        """Into the Images tab."""
        self.logger.experiment.add_image(tag, picture, step, dataformats="HWC")

    def status(self, tag: str, status: Status, step: int) -> None:
        """Into the Text tab; a blank line makes a paragraph."""
        first, *others = status.text.splitlines()
        self.logger.experiment.add_text(tag, "\n\n".join([f"**{first}**", *others]), step)


class WandbSink(Sink):
    """Weights & Biases: images, a table of alarms, an alert (which reaches those who switched alerts on)."""

    def settings(self, tag: str, values: Mapping[str, Any]) -> None:
        """Into the configuration of the run."""
        self.logger.experiment.config.update({tag.replace("/", "_"): dict(values)}, allow_val_change=True)

    def picture(self, tag: str, picture: NDArray[np.uint8], step: int) -> None:
        """As media of the step."""
        self.logger.log_image(tag, [picture], step=step)

    def status(self, tag: str, status: Status, step: int) -> None:
        """Into the summary of the run, which holds the latest one."""
        self.logger.experiment.summary[tag] = status.text

    def alarm(self, tag: str, alarm: Status, step: int) -> None:
        """As an alert and as a table."""
        self.logger.experiment.alert(title=f"geometry {alarm.title}", text=alarm.text, level="WARN")
        row = [step, alarm.headline, alarm.text]
        self.logger.log_text(f"{tag}_text", columns=["step", "alarm", "text"], data=[row], step=step)


class MLFlowSink(Sink):
    """MLflow: images by step, and text files among the artifacts."""

    def settings(self, tag: str, values: Mapping[str, Any]) -> None:
        """As a file of JSON."""
        self._write(f"{tag}.json", json.dumps(values, indent=2))

    def picture(self, tag: str, picture: NDArray[np.uint8], step: int) -> None:
        """As an image of the step."""
        client, run = self.logger.experiment, self.logger.run_id
        client.log_image(run, picture, key=re.sub(r"[^\w/. -]", "_", tag), step=step)

    def status(self, tag: str, status: Status, step: int) -> None:
        """As a tag of the run, which holds the latest one."""
        self.logger.experiment.set_tag(self.logger.run_id, tag.replace("/", "."), status.text)

    def alarm(self, tag: str, alarm: Status, step: int) -> None:
        """As a file of text."""
        self._write(f"{tag}_step_{step}.txt", alarm.text + "\n")

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
    """A layout for ``add_custom_scalars``: a category for each layer, charts for the markers that were measured.

    TensorBoard reads the tags of a chart as regular expressions that must match from the start.

    >>> layout_of([Record(1, 0, "fc", "accuracy", 0.5)])
    {'fc': {'accuracy on the probe set': ['Multiline', ['(.*-)?geometry/fc/accuracy$']]}}
    """
    layout: dict[str, dict[str, list[Any]]] = {}
    for layer in dict.fromkeys(record.layer for record in records if record.layer):
        measured = [record.marker for record in records if record.layer == layer]
        shifted = tuple(name for name in measured if name.startswith("accuracy_under_"))
        for title, names in CHARTS:
            shown = [name for name in (*names, *(shifted if "accuracy" in names else ())) if name in measured]
            if shown:
                tags = [_pattern(f"geometry/{layer}/{name}") for name in shown]
                layout.setdefault(layer, {})[title] = ["Multiline", tags]
    return layout


def _pattern(tag: str) -> str:
    """A regular expression for a tag, whether or not a logger put a prefix before it or replaced odd letters."""
    return "(.*-)?" + re.sub(r"[^\w/-]", ".", tag) + "$"
