"""From when a run can be judged: a sentence at its start, and a warning if the planned length never allows it."""

from __future__ import annotations

from geomonitor.alarms.detectors.baseline import SCATTER_FROM
from geomonitor.alarms.detectors.drop import DropFromReference
from geomonitor.alarms.panel import Panel
from geomonitor.alarms.votes import family_of

AMPLE = 2
"""A suggested pace gives twice the measurements that the first alarm needs."""


def first_alarm(panel: Panel) -> int | None:
    """Number, from 1, of the measurement at which an alarm is possible; None for a detector whose warm-up is unknown.

    Args:
        panel: filled in.

    >>> first_alarm(Panel().resolve(["dimension", "numerical_rank", "accuracy"]))
    8
    >>> first_alarm(Panel(pretrained=True).resolve(["dimension", "numerical_rank", "accuracy"]))
    5
    """
    detector = panel.detector
    if not isinstance(detector, DropFromReference):
        return None
    with_errors = panel.votes == 1 and any(family_of(marker) == "manifolds" for marker in panel.watch or ())
    return (detector.warmup_checks if with_errors else max(detector.warmup_checks, SCATTER_FROM)) + detector.needed


def outlook(panel: Panel, planned: int | None, steps: int | None = None) -> tuple[bool, str] | None:
    """Whether a run of the planned length can be judged, and a sentence for the log.

    Args:
        panel: filled in.
        planned: measurements of the run; None if its length is not known.
        steps: optimiser steps of the run, for the pace to suggest.

    Returns:
        None if nothing is known of it.

    >>> outlook(Panel().resolve(["dimension", "numerical_rank", "accuracy"]), 20)
    (True, 'geometry: alarms are possible from measurement 8 of 20 on')
    """
    first = first_alarm(panel)
    if first is None:
        return None
    if planned is None:
        return True, f"geometry: alarms are possible from measurement {first} on"
    if planned >= first:
        return True, f"geometry: alarms are possible from measurement {first} of {planned} on"
    pace = max(1, (steps or 0) // (AMPLE * first))
    ways = [f"measure more often ({f'every_n_steps={pace}' if steps else 'every_n_steps'})"]
    if not panel.pretrained:
        ways.append("if the weights are pretrained, write panel=gm.Panel(pretrained=True), which needs no warm-up")
    return False, (
        f"this run is planned for {planned} measurements of the geometry, and an alarm is possible from measurement "
        f"{first} on: it will raise none. To change that, {'; or, '.join(ways)}."
    )
