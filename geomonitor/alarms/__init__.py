"""Whether a representation is declining, and the words for it.

- ``detectors``: a state and one measurement of one marker after the other.
- ``verdict``, ``votes``: what a verdict is; from the markers of a layer to the layer.
- ``panel``: what is judged: markers, detector, votes.
- ``judge``: the one place where runs and histories are judged.
- ``alarm``: an interval of declining measurements.
- ``words``: a verdict as a warning.
"""
