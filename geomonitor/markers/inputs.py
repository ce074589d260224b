"""The checks at the public boundary: what a feature matrix and its labels must be."""

from __future__ import annotations

import torch
from torch import Tensor

from geomonitor import _options
from geomonitor.errors import InputError


def feature_matrix(features: Tensor) -> Tensor:
    """Check a feature matrix and return it in float64.

    Args:
        features: shape ``(Q, N)``, one point a row, any real dtype, any device.

    Returns:
        The same values, detached, float64, shape ``(Q, N)``.

    Raises:
        InputError: not a tensor, not two-dimensional, empty, complex, or with NaN or infinite entries.

    >>> feature_matrix(torch.ones(3, 2, dtype=torch.float16)).dtype
    torch.float64
    """
    require_matrix(features)
    if 0 in features.shape:
        raise InputError(f"features must hold at least one point and one unit; got {tuple(features.shape)}")
    matrix = on_float64_device(features.detach()).to(torch.float64)
    if not bool(torch.stack(torch.aminmax(matrix)).isfinite().all()):  # one pass; NaN goes through
        bad = int((~torch.isfinite(matrix).all(dim=1)).sum())
        raise InputError(
            f"features must be finite; {bad} of {len(matrix)} rows hold NaN or infinite values. "
            "Look for an overflow in the layer (half precision?), or drop these rows."
        )
    return matrix


def require_matrix(features: Tensor) -> None:
    """Refuse what is not a real ``(Q, N)`` matrix; looks at shape and dtype only, never at values."""
    _options.instance("features", features, Tensor, "a torch.Tensor of shape (Q, N), one point a row")
    if features.ndim != 2:
        raise InputError(
            f"features must have shape (Q, N), one point a row; got {tuple(features.shape)}. "
            "Pool or flatten the other dimensions first."
        )
    if features.is_complex():
        raise InputError(f"features must be real; got {features.dtype}")


def require_labels(labels: Tensor, points: int) -> None:
    """Refuse labels that are not ``points`` integers; looks at shape and dtype only, never at values."""
    _options.instance("labels", labels, Tensor, "a torch.Tensor of shape (Q,)")
    if labels.ndim != 1 or labels.shape[0] != points:
        raise InputError(f"labels must have shape (Q,) with one label a point, Q = {points}; got {tuple(labels.shape)}")
    if labels.is_floating_point() or labels.is_complex():
        raise InputError(f"labels must be integers; got {labels.dtype}")


def given_matrix(name: str, matrix: object) -> Tensor | None:
    """A real tensor that may be left out, detached.

    Raises:
        InputError: something else.
    """
    if matrix is None:
        return None
    tensor: Tensor = _options.instance(name, matrix, Tensor, "a torch.Tensor, or None")
    if tensor.is_complex() or not tensor.ndim:
        raise InputError(f"{name} must be a real tensor with dimensions; got {tensor.dtype} {tuple(tensor.shape)}")
    return tensor.detach()


def on_float64_device(tensor: Tensor) -> Tensor:
    """Move a tensor to the CPU if its device has no float64 (Apple's MPS); otherwise return it unchanged."""
    return tensor.cpu() if tensor.device.type == "mps" else tensor
