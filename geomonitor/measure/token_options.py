"""What a monitor of tokens may be given."""

from __future__ import annotations

from typing import Any

from geomonitor.errors import InputError
from geomonitor.features.capture import Pool
from geomonitor.features.layers import POOLS_OF_LAYERS, Layers, checked_layers
from geomonitor.probe.probe_set import ProbeSet
from geomonitor.probe.token_probe import TokenProbe
from geomonitor.probe.validation_probe import ValidationProbe


def with_tokens(
    probe: ProbeSet | ValidationProbe, pool: Pool, layers: Layers, truth: Any
) -> tuple[ProbeSet | ValidationProbe, Pool]:
    """The probe whose points are measured, and how they are pooled: tokens, if one of both asks for them.

    Args:
        probe: the points, or the sequences whose tokens are the points.
        pool: as in ``GeometryMonitor``.
        layers: likewise.
        truth: likewise.

    Raises:
        InputError: what does not go together with tokens.
    """
    if pool != "tokens" and not isinstance(probe, TokenProbe):
        return probe, pool
    if pool not in ("auto", "tokens"):
        raise InputError(f"the points of a TokenProbe are tokens, so pool is 'tokens' or left out; got {pool!r}")
    if not isinstance(probe, ProbeSet):
        raise InputError('pool="tokens" needs a gm.TokenProbe, or a probe set without labels; got a ValidationProbe')
    names = [str(name) for _, name in checked_layers(layers)]
    if asked := [name for name in names if name.rpartition(":")[2] in POOLS_OF_LAYERS and ":" in name]:
        raise InputError(
            f"points are tokens, which are not pooled: name layers without {', '.join(asked)!r} at the end"
        )
    if truth is not None:
        raise InputError("truth has one label for each item, and points are tokens: give it to a monitor of its own")
    return TokenProbe.of(probe), "tokens"
