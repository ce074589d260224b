"""The panel: what is judged and how. Watched markers, a detector, votes; what the user leaves open is filled in."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from geomonitor import _options
from geomonitor._options import OPEN_SHARE, Range
from geomonitor.alarms.detectors import DETECTORS, AgreeingDrop, DropFromReference, ReferenceRuns, make_detector
from geomonitor.alarms.detectors.levels import LevelDetector
from geomonitor.alarms.harm import ALARM_AT
from geomonitor.alarms.verdict import Detector
from geomonitor.alarms.votes import check_votes, family_of
from geomonitor.errors import InputError
from geomonitor.markers.names import marker_names

AUTO = "auto"
"""Name of the detector that suits the number of votes."""
CUSTOM = "custom"
"""Name, in a file, of a detector that cannot be made again from it."""
DEFAULT_WATCH = (
    *("dimension", "capacity", "numerical_rank", "cdnv"),
    *("participation_ratio_per_class", "mean_norm", "accuracy"),
)
"""Markers that are judged by default: those that found most faults in ``docs/calibration.md``."""
ALONE = DropFromReference()
"""One marker alone has to change much, and stay there."""
AGREEING = AgreeingDrop()
VOTES = 2
"""Two confirmed families."""
LEAST_FAMILIES = 3
"""With this number of measured families or more, families have to agree by default."""

_VOTES_RANGE = Range(1, ends="[)")


@dataclass(frozen=True)
class Panel:
    """Markers that are judged, the detector that judges each of them, and the votes that make an alarm.

    Args:
        watch: names of markers; None: the measured ones of ``DEFAULT_WATCH``.
        detector: an instance; a function of a :class:`geomonitor.Series` that returns a :class:`geomonitor.Verdict`
            (it costs a look at the whole series at each measurement); a name in ``geomonitor.DETECTORS``; ``"auto"``:
            ``AGREEING`` for more votes than one, else ``ALONE``; None: nothing is judged.
        votes: families of watched markers that must decline together, from 1, see
            :func:`geomonitor.alarms.votes.count_votes`; None: ``VOTES`` if the default markers are watched and three
            families of them are measured, else 1.
        custom: of a panel that was read from a file, the ``repr`` of a detector that cannot be made again; the detector
            is None then.
        alarm_at: relative decline, in ``(0, 1)``, of each marker that counts for an alarm; what declines less is a
            notice. None: what harm was associated with in the bench, ``ALARM_AT``, if markers, detector and votes are
            the default ones; else ``{}``: every notice is an alarm.
        pretrained: the run begins with pretrained weights: it is measured before the first step, and what follows is
            judged as soon as its noise is known: markers with a sampling error from the second measurement on, others
            from the fourth.

    Raises:
        InputError: a value of another type or out of its range, no such detector, votes that can never be reached.

    >>> Panel().resolve(["dimension", "numerical_rank", "cdnv", "accuracy"]).votes
    2
    >>> Panel(["dimension"], DropFromReference(drop=0.2)).to_dict()["detector"]["drop"]
    0.2
    """

    watch: tuple[str, ...] | None = None
    detector: Detector | str | None = AUTO
    votes: float | None = None
    custom: str = ""
    alarm_at: Mapping[str, float] | None = None
    pretrained: bool = False

    def __post_init__(self) -> None:
        _options.flag("pretrained", self.pretrained)
        if self.alarm_at is not None:
            object.__setattr__(self, "alarm_at", _alarm_at(self.alarm_at))
        if self.watch is not None:
            object.__setattr__(self, "watch", _names(self.watch))
        if self.votes is not None:
            object.__setattr__(self, "votes", _VOTES_RANGE.number("votes", self.votes))
            if self.watch:
                check_votes(self.watch, self.votes)
        _check_detector(self.detector)

    def resolve(self, measured: Sequence[str], **settings: Any) -> Panel:
        """Fill in what is left open, by the calibration in ``docs/calibration.md``.

        Args:
            measured: names of the markers there are.
            **settings: of a detector given by name, or of the one that ``"auto"`` stands for.

        Returns:
            A panel whose watch and votes are given, and whose detector can be called or is None; of one that is
            complete, the same.

        Raises:
            InputError: settings that the detector does not take, or needs; votes or sizes that can never be reached.

        >>> Panel().resolve(["dimension"], drop=0.2).detector.drop
        0.2
        """
        watch, votes = self.watch, self.votes
        if watch is None:
            watch = tuple(marker for marker in DEFAULT_WATCH if marker in measured)
        if votes is None:
            agreeing = self.watch is None and len({family_of(name) for name in watch}) >= LEAST_FAMILIES
            votes = VOTES if agreeing else 1
        check_votes(watch, votes)
        alarm_at, detector = self.alarm_at, self.detector
        if alarm_at is None:
            as_calibrated = self.watch is None and detector == AUTO and votes == VOTES
            alarm_at = ALARM_AT if as_calibrated and _can_alarm(watch, votes, ALARM_AT) else {}
        if detector == AUTO:
            suited = AGREEING if votes > 1 else ALONE
            try:
                detector = dataclasses.replace(suited, **settings)
            except TypeError as error:
                raise InputError(f"{suited} does not take these settings: {error}") from error
        elif isinstance(detector, str):
            detector = make_detector(detector, **settings)
        elif settings:
            raise InputError(
                f"the detector {detector!r} is complete: give it without further settings, or give its name; "
                f"got the settings {settings}"
            )
        if self.pretrained:
            if not isinstance(detector, DropFromReference):
                raise InputError(
                    f"pretrained=True needs a detector with a warm-up, DropFromReference; got {detector!r}"
                )
            detector = dataclasses.replace(detector.at_once(1), recent_noise=True)
        _check_alarm_at(watch, votes, alarm_at, detector)
        return dataclasses.replace(self, watch=watch, detector=detector, votes=votes, alarm_at=dict(alarm_at))

    @property
    def calibrated(self) -> bool:
        """Whether the rates of alarms and notices in ``docs/carry_over.md`` hold for this panel, resolved."""
        return (self.votes, self.detector, self.alarm_at) == (VOTES, AGREEING, ALARM_AT)

    def fitted(self, measured: Sequence[str], protocol: Mapping[str, Any]) -> Panel | None:
        """As :meth:`resolve`, for a monitor: None if nothing is to be judged.

        Args:
            measured: names of the markers that it measures.
            protocol: by which it measures them; a detector may ask for a certain one.

        Raises:
            InputError: as :meth:`resolve`; watched markers that are not measured; reference runs of another protocol.
        """
        panel = self.resolve(measured)
        if panel.detector is None:
            return None
        marker_names(panel.watch or (), more=measured)
        if not panel.watch:
            raise InputError(
                f"none of the markers {measured} raises alarms by default: give panel=None for curves without "
                "verdicts, or panel=gm.Panel(watch=[...])"
            )
        if not set(panel.watch) <= set(measured):
            raise InputError(f"watch must name at least one of the measured markers {measured}; got {panel.watch}")
        if (check := getattr(panel.detector, "check_protocol", None)) is not None:
            check(protocol)
        return panel

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a file: ``{"watch": [...], "votes": 2, "detector": {"name": "agreeing_drop", ...}}``.

        Infinity is None, which JSON knows; a detector that is the user's own, or was given runs in memory, is
        ``{"name": "custom", "repr": "..."}``.
        """
        watch = None if self.watch is None else list(self.watch)
        return {
            "watch": watch,
            "votes": self.votes,
            "detector": _detector_to_dict(self.detector, self.custom),
            "alarm_at": None if self.alarm_at is None else dict(self.alarm_at),
            **({"pretrained": True} if self.pretrained else {}),
        }

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any]) -> Panel:
        """The panel that :meth:`to_dict` has written; of a detector that cannot be made again, ``custom`` is its repr.

        Raises:
            InputError: this is no panel.
        """
        _options.instance("saved", saved, Mapping, "a mapping with watch, votes and detector")
        try:
            watch, votes, detector = saved["watch"], saved["votes"], saved["detector"]
            made, custom = _detector_from_dict(detector)
        except (TypeError, KeyError, AttributeError) as error:
            raise InputError(f"a panel has watch, votes and detector; got {saved!r}") from error
        # A panel of an older version has no such sizes: every decline was an alarm.
        return cls(
            None if watch is None else tuple(watch),
            made,
            votes,
            custom,
            saved.get("alarm_at", {}),
            bool(made) and saved.get("pretrained", False) is True,
        )


def panel_of(saved: Mapping[str, Any] | None) -> Panel:
    """The panel that judged a run, by the side file of its history; the default one if it is not recorded.

    Raises:
        InputError: what is recorded is no panel.
    """
    return Panel() if saved is None else Panel.from_dict(saved)


def _names(watch: Any) -> tuple[str, ...]:
    if isinstance(watch, str) or not isinstance(watch, Sequence) or not all(isinstance(name, str) for name in watch):
        raise InputError(f'watch is a tuple of names of markers, such as ("dimension", "cdnv"); got {watch!r}')
    return tuple(dict.fromkeys(watch))


def _alarm_at(sizes: Any) -> Mapping[str, float]:
    if not isinstance(sizes, Mapping) or not all(isinstance(name, str) for name in sizes):
        raise InputError(f'alarm_at gives a relative decline by marker, such as {{"dimension": 0.1}}; got {sizes!r}')
    return {name: OPEN_SHARE.number(f"alarm_at[{name!r}]", size) for name, size in sizes.items()}


def _can_alarm(watch: Sequence[str], votes: float, alarm_at: Mapping[str, float]) -> bool:
    return len({family_of(name) for name in watch if name in alarm_at}) >= votes


def _check_alarm_at(watch: Sequence[str], votes: float, alarm_at: Mapping[str, float], detector: Any) -> None:
    """Refuse sizes with which there can be no alarm."""
    if alarm_at and not _can_alarm(watch, votes, alarm_at):
        raise InputError(
            f"alarm_at={dict(alarm_at)} can never make an alarm: of the watched markers {tuple(watch)} it names fewer "
            f"families than votes={votes:g}. Name more of them, or write fewer votes."
        )
    if alarm_at and detector is not None and not isinstance(detector, LevelDetector):
        raise InputError(
            f"alarm_at needs a detector that measures the size of a decline, one of {', '.join(DETECTORS)}; got "
            f"{detector!r}. Leave alarm_at out: then each decline is an alarm."
        )


def _check_detector(detector: Any) -> None:
    if detector is None or (isinstance(detector, str) and detector == AUTO):
        return
    if isinstance(detector, type):
        raise InputError(f"detector is an instance: write {detector.__name__}(), not {detector.__name__}")
    if isinstance(detector, str):
        if detector not in DETECTORS:
            raise InputError(f"no detector is called {detector!r}; there are {AUTO}, {', '.join(DETECTORS)}")
    elif not callable(detector):
        raise InputError(f"detector is a name, or a function of a Series that returns a Verdict; got {detector!r}")


def _detector_to_dict(detector: Detector | str | None, custom: str) -> dict[str, Any] | None:
    if detector is None:
        return {"name": CUSTOM, "repr": custom} if custom else None
    if isinstance(detector, str):
        return {"name": detector}
    name = next((name for name, kind in DETECTORS.items() if type(detector) is kind), CUSTOM)
    if isinstance(detector, ReferenceRuns) and name != CUSTOM:
        settings = detector.settings()
        return {"name": name, **settings} if settings else {"name": CUSTOM, "repr": repr(detector)}
    if name == CUSTOM:
        return {"name": CUSTOM, "repr": _custom_name(detector)}
    settings = dataclasses.asdict(cast(Any, detector))
    return {"name": name, **{key: None if value == math.inf else value for key, value in settings.items()}}


def _custom_name(detector: Detector) -> str:
    """Of a function its full name, not its address in memory, which is another one in each process."""
    name = getattr(detector, "__qualname__", None)
    return f"{detector.__module__}.{name}" if name else repr(detector)


def _detector_from_dict(saved: Mapping[str, Any] | None) -> tuple[Detector | str | None, str]:
    """The detector, and the repr of one that cannot be made again."""
    if saved is None:
        return None, ""
    name, settings = saved["name"], {key: value for key, value in saved.items() if key != "name"}
    if name == CUSTOM:
        return None, str(saved["repr"])
    if not settings and (name == AUTO or name in DETECTORS):
        return str(name), ""
    try:
        return make_detector(name, **{k: math.inf if value is None else value for k, value in settings.items()}), ""
    except (InputError, OSError):  # of another version, or its reference runs are elsewhere
        return None, repr(dict(saved))
