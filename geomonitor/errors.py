"""What geomonitor raises and warns with. Every error is also a built-in one, so plain ``except ValueError`` works."""

from __future__ import annotations


class GeomonitorError(Exception):
    """Anything that geomonitor raises on purpose."""


class InputError(GeomonitorError, ValueError):
    """An argument that can never work: its message names what was expected, what was found and what to do."""


class MeasurementError(GeomonitorError, RuntimeError):
    """A measurement that could not be made on this model at this step."""


class GeomonitorWarning(UserWarning):
    """Something the user should know that is no reason to stop: a value is undefined, an input was repaired."""
