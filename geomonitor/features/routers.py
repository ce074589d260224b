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
_SCORES = ("scoring_func", "expert_selection_fn")
_BIASES = ("e_score_correction_bias", "expert_bias")


class Router(NamedTuple):
    """A module that chooses experts for each token."""

    module: nn.Module
    weight: Tensor | None
    """``(E, H)``, a row for each expert; None if it has none"""
    per_token: int | None
    """experts per token, for a module that gives logits only; None: not known"""
    experts: tuple[int, ...] = ()
    """numbers of experts by attributes and configurations, from the module outwards"""
    score: str = "softmax"
    """score function by its configuration and biases, taken where its weights do not show it"""
    biased: bool = False
    """whether it or the module around it has a bias for the choice, which logits do not show"""


def find_routers(model: nn.Module, routers: RouterNames = None) -> dict[str, Router]:
    """The routers of a model by path, in the order of registration; without a forward pass.

    A router is a module called ``gate`` or ``router`` with a weight ``(E, H)``, its own or of a child, in which ``E``
    is the number of experts by the configuration of the model (``num_experts``, ``num_local_experts``,
    ``n_routed_experts``), or with such an attribute of its own: so they are in transformers.

    Args:
        model: the model, wrapped or not; paths are of the plain model.
        routers: paths of the modules instead, or a mapping from path to experts per token, which a module that gives
            logits only does not show.

    Raises:
        InputError: no router, or a path that does not exist; routers of an encoder and of a decoder, unless they are
            named.

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
        if path.rpartition(".")[2] not in _NAMES or inner or not _tables(module):
            continue
        router = _router(path, modules, None)
        if _own(module) or (router.weight is not None and len(router.weight) in router.experts):
            found[path] = router
    if not found:
        raise InputError(
            f"no router of a mixture of experts was found in {type(modules['']).__name__}: give routers= the paths of "
            "the modules that give router logits (tokens, experts), with the experts per token, such as "
            "routers={'blocks.0.gate': 2}, or leave the markers of routing out"
        )
    inside = [path for path in found if "decoder" not in path.split(".")]
    if getattr(getattr(modules[""], "config", None), "is_encoder_decoder", False) and 0 < len(inside) < len(found):
        raise InputError(
            "the model has routers in its encoder and in its decoder, which see different tokens: name those of one, "
            f"such as routers={inside}"
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
    module = modules[path]
    known = per_token or next(_numbers(path, modules, _PER_TOKEN), None)
    experts = tuple(_numbers(path, modules, _EXPERTS))
    holders = (module, modules[path.rpartition(".")[0]])
    said = [score for score in _attributes(path, modules, _SCORES) if isinstance(score, str)]
    biased = any(getattr(holder, bias, None) is not None for holder in holders for bias in _BIASES)
    score = (*said, "sigmoid" if biased else "softmax")[0]
    return Router(module, _weight(module, experts), known, experts, score, biased)


def _weight(module: nn.Module, experts: Sequence[int]) -> Tensor | None:
    """The rows of the experts; weights that are spread over processes (FSDP2) are not gathered here."""
    tables = _tables(module)
    fitting = [weight for weight in tables if len(weight) in experts]
    return next(iter(fitting if fitting or _own(module) else tables), None)


def _tables(module: nn.Module) -> list[Tensor]:
    every = [getattr(each, "weight", None) for each in module.modules()]
    return [weight for weight in every if isinstance(weight, Tensor) and weight.ndim == 2]


def _own(module: nn.Module) -> bool:
    """Whether a module itself holds the number of experts."""
    return any(_is_number(getattr(module, name, None)) for name in _EXPERTS)


def _is_number(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _numbers(path: str, modules: Mapping[str, nn.Module], names: Sequence[str]) -> Iterator[int]:
    return (value for value in _attributes(path, modules, names) if _is_number(value))


def _attributes(path: str, modules: Mapping[str, nn.Module], names: Sequence[str]) -> Iterator[Any]:
    """Attributes of a module and of those around it, and of their configurations, from the module outwards."""
    while True:
        for holder in (modules[path], getattr(modules[path], "config", None)):
            yield from (getattr(holder, name, None) for name in names)
        if not path:
            return
        path = path.rpartition(".")[0]
