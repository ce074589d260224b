"""From a model to features ``(Q, N)`` without leaving a trace on it.

- ``layers``: which modules a name means.
- ``capture``: hooks that take what goes into or comes out of a layer, and pooling to one row a point.
- ``isolation``: modes, buffers, hooks, random streams are as before when a block ends.
- ``outputs``: the logits in what a model returns, and the linear head that a layer feeds.
"""
