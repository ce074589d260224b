"""Pure functions, tensors in, tensors out: the only home of formulas. ``MARKERS`` is their table.

To add a marker: a function in the file of its kind (``spectrum``, ``collapse``, ``activity``, ``distances``,
``neighbors``, ``drift``, ``logits``, ``coherence``; ``manifolds`` for the effective geometry), a row in ``table``, a
test.
"""

from geomonitor.markers.table import BESIDE, COUNTS, MARKER_GROUPS, MARKERS, Cost, Marker, State

__all__ = ["BESIDE", "COUNTS", "MARKERS", "MARKER_GROUPS", "Cost", "Marker", "State"]
