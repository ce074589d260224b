"""Options of a monitor by flat names, put into the objects that group them."""

from __future__ import annotations

from typing import Any

import geomonitor as gm

GEOMETRY = ("directions", "dichotomies", "mode", "pairs", "seed", "ridge")
PANEL = ("watch", "detector", "votes")


def grouped(**options: Any) -> dict[str, Any]:
    """The options of ``GeometryMonitor``; ``detector=None`` means that nothing is judged."""
    geometry = {name: options.pop(name) for name in GEOMETRY if name in options}
    panel = {name: options.pop(name) for name in PANEL if name in options}
    if geometry:
        options["geometry"] = gm.GeometryOptions(**geometry)
    if panel:
        options["panel"] = None if panel.get("detector", "") is None else gm.Panel(**panel)
    return options
