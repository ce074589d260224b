"""Options by name: what a user may write for markers, and the error if it is wrong."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from geomonitor import _options
from geomonitor.errors import InputError
from geomonitor.markers import MARKER_GROUPS, MARKERS


def marker_names(markers: str | Sequence[str], more: Sequence[str] = ()) -> tuple[str, ...]:
    """Names of markers, without repetition, from a group, a name or names; ``more`` are known besides the table's.

    Raises:
        InputError: no such marker or group, with the nearest ones.
    """
    markers = _options.names("markers", markers, "'default' or ['dimension', 'nc1']")
    if len(markers) == 1:
        markers = MARKER_GROUPS.get(markers[0], markers)
    for name in markers:
        if name not in MARKERS and name not in more:
            near = difflib.get_close_matches(name, [*MARKERS, *MARKER_GROUPS, *more])
            hint = f"did you mean {' or '.join(map(repr, near))}?" if near else f"there are {', '.join(MARKERS)}"
            raise InputError(f"no marker or group is called {name!r}; {hint}")
    return tuple(dict.fromkeys(markers))
