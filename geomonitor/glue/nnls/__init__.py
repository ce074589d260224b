"""Non-negative least squares, the dual problem of an anchor point. Start with `solve`: which algorithm when and why."""
