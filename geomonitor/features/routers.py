"""Which modules of a model are the routers of a mixture of experts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

from torch import Tensor, nn

from geomonitor import _options
from geomonitor.errors import InputError
from geomonitor.features.layers import listed, plain_modules

RouterNames: TypeAlias = "str | Sequence[str] | Mapping[str, int | None] | None"
"""Paths, or path to experts per token; None: found by the rule of :func:`find_routers`."""

_NAMES = ("gate", "router")
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
_PER_TOKEN = ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "top_k")


class Router(NamedTuple):
    """A module that chooses experts for each token."""

    module: nn.Module
    weight: Tensor | None
    """``(E, H)``, a row for each expert; None if it has none"""
    per_token: int | None
    """experts per token, for a module that gives logits only; None: not known"""


def find_routers(model: nn.Module, routers: RouterNames = None) -> dict[str, Router]:
    """The routers of a model by path, in the order of registration; without a forward pass.

    A router is a module called ``gate`` or ``router`` with a weight ``(E, H)``, its own or of a child, in which ``E``
    is the number of experts by the configuration of the model (``num_experts``, ``num_local_experts``,
    ``n_routed_experts``) or by an attribute ``num_experts`` of the module: so they are in transformers.

    Args:
        model: the model, wrapped or not; paths are of the plain model.
        routers: paths of the modules instead, or a mapping from path to experts per token, which a module that gives
            logits only does not show.

    Raises:
        InputError: no router, or a path that does not exist.

    >>> block = nn.ModuleDict({"gate": nn.Linear(8, 4), "experts": nn.ModuleList([nn.Linear(8, 8)] * 4)})
    >>> {path: router.per_token for path, router in find_routers(nn.Sequential(block), {"0.gate": 2}).items()}
    {'0.gate': 2}
    """
    modules, named = plain_modules(model), checked_routers(routers)
    if named is not None:
        for path in named:
            if path not in modules:
                raise InputError(
                    f"the model has no module {path!r} for routers. It has {listed(filter(None, modules))}"
                )
        return {path: _router(path, modules, k) for path, k in named.items()}
    found: dict[str, Router] = {}
    for path, module in modules.items():
        inner = any(path.startswith(f"{outer}.") for outer in found)
        if path.rpartition(".")[2] not in _NAMES or inner or (weight := _weight(module)) is None:
            continue
        if len(weight) in {*_numbers(path, modules, _EXPERTS), getattr(module, "num_experts", None)}:
            found[path] = _router(path, modules, None)
    if not found:
        raise InputError(
            f"no router of a mixture of experts was found in {type(modules['']).__name__}: give routers= the paths of "
            "the modules that give router logits (tokens, experts), with the experts per token, such as "
            "routers={'blocks.0.gate': 2}, or leave the markers of routing out"
        )
    return found


def checked_routers(routers: Any) -> dict[str, int | None] | None:
    """Experts per token by path; None: to be found.

    Raises:
        InputError: neither names nor a mapping from names to whole numbers.
    """
    if routers is None:
        return None
    if isinstance(routers, Mapping):
        paths = _options.names("routers", list(routers), "{'blocks.0.gate': 2}")
        counts = [_options.whole_or_none(f"routers[{path!r}]", k) for path, k in routers.items()]
        found = dict(zip(paths, counts, strict=True))
    else:
        found = dict.fromkeys(_options.names("routers", routers, "['blocks.0.gate'] or {'blocks.0.gate': 2}"))
    if not found:
        raise InputError("routers names no module: leave it out, or give paths such as ['blocks.0.gate']")
    return found


def _router(path: str, modules: Mapping[str, nn.Module], per_token: int | None) -> Router:
    known = per_token or next(_numbers(path, modules, _PER_TOKEN), None)
    return Router(modules[path], _weight(modules[path]), known)


def _weight(module: nn.Module) -> Tensor | None:
    """The rows of the experts; weights that are spread over processes (FSDP2) are not gathered here."""
    own = (getattr(each, "weight", None) for each in (module, *module.children()))
    return next((weight for weight in own if isinstance(weight, Tensor) and weight.ndim == 2), None)


def _numbers(path: str, modules: Mapping[str, nn.Module], names: Sequence[str]) -> Iterator[int]:
    """Numbers of some names in what configures a module: configurations and attributes of the modules around it."""
    above = path
    while above:
        above = above.rpartition(".")[0]
        module = modules[above]
        for holder in (getattr(module, "config", None), module):
            for name in names:
                number = getattr(holder, name, None)
                if isinstance(number, int) and not isinstance(number, bool):
                    yield number
