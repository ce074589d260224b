"""Which points are measured: a fixed, seeded, class-balanced choice from a held-out data set.

- ``probe_set``: :class:`ProbeSet`, the points that a measurement runs through the model.
- ``choice``: which classes and which of their points a seed chooses.
- ``datasets``: what data sets look like: map-style, labels, subsets.
- ``held_out``: whether two data sets share points.
- ``reservoir``: a bounded choice of points per class that does not depend on batches, order or processes.
- ``shifts``: input shifts (noise, blur, ...) for the accuracy under them.
"""
