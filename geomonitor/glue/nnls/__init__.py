"""The dual problem of an anchor point: non-negative least squares, many right-hand sides, few Gram matrices."""
