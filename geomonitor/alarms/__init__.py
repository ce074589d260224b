"""Whether a representation is in decline, and how that is said.

- ``detectors``: pure functions of one series of measurements.
- ``verdict``: what a verdict is; votes of several markers.
- ``panel``: what is judged by default: markers, detector, votes.
- ``replay``: all alarms of a saved history.
- ``words``: a verdict as a warning.
"""
