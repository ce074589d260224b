"""One measurement: the source of its points, what is computed from them, what it may cost.

- ``probe_pass``: the probe set goes through the model.
- ``passive``: the points come from the validation loop's own forward passes instead.
- ``measurement``: points in, markers out.
- ``snapshot``: what figures show of it.
- ``budget``: how often to measure.
"""
