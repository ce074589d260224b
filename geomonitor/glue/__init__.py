"""Manifold capacity and the effective geometry of class manifolds (GLUE). Start with ``manifolds``, the definition.

The work goes ``draws`` (directions, dichotomies) -> ``points`` (checked, scaled, sorted by class) -> ``anchors``
(dual weights, by ``nnls``) -> ``samples`` and ``scalars`` (three numbers a direction) -> ``estimates`` (means,
standard errors) -> ``result``.
"""
