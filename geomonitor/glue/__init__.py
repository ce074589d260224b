"""Manifold capacity and the effective geometry of class manifolds (GLUE). Start with ``manifolds``, the definition.

The flow: ``draws`` (directions, dichotomies) and ``points`` (checked, scaled, sorted by class) -> ``joint`` or
``pairwise``: ``anchors`` (dual weights, by ``nnls``) and ``scalars`` (three numbers a direction) -> ``estimates``
(means, standard errors) -> ``result``.
"""
