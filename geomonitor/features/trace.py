"""One forward pass as a graph: which operation made which tensor, inside which module."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

# Parts of the names of operations that mix the columns of their input: products with weights, convolutions, distances.
_MIXING = ("mm", "conv", "linear", "dist", "einsum", "mv", "matmul", "lstm", "gru", "rnn", "dot_product")
_WHOLE_LAYERS = ("lstm", "gru", "rnn", "dot_product")
# Parts of the names of operations after which features are no longer an affine map of what went in.
_BENDING = ("relu", "gelu", "silu", "tanh", "elu", "swish", "mish", "softplus", "threshold", "_norm", "rsqrt", "glu")
_NORMS_OF_VECTORS = ("linalg_vector_norm", "_weight_norm")


class Operation(NamedTuple):
    """One operation of torch on tensors."""

    name: str
    number: int
    """in the order of execution"""
    takes: tuple[int, ...]
    """the tensors that go in, by :func:`id`"""
    within: tuple[str, ...]
    """paths of the modules that were running, the innermost last"""
    rank: int = 0
    """the most dimensions of a tensor that comes out"""

    @property
    def mixes(self) -> bool:
        """Whether it mixes columns, as a layer with weights does."""
        return any(part in self.name for part in _MIXING)

    @property
    def projects(self) -> bool:
        """Whether it is a product with weights or a convolution, as in a head; not a whole recurrence or attention."""
        return self.mixes and not any(part in self.name for part in _WHOLE_LAYERS)

    @property
    def bends(self) -> bool:
        """Whether it is an activation or a normalisation of units."""
        return any(part in self.name for part in _BENDING) and self.name not in _NORMS_OF_VECTORS


class Call(NamedTuple):
    """One run of a module."""

    path: str
    takes: Any
    gives: Any
    ended: int = 0
    """how many operations had run when it ended"""


class Trace(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records a forward pass that runs inside the block; holds every tensor of it, so the batch should be small."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operations: list[Operation] = []
        self.calls: list[Call] = []
        """of modules, in the order in which they ended"""
        self._made_by: dict[int, list[Operation]] = {}
        self._sharing: dict[int, dict[int, Tensor]] = {}
        """all tensors by id, by the memory that they share; held, since an id names one tensor as long as it lives"""
        self._written: dict[int, int] = {}
        """number of the latest operation that wrote to what existed, by the memory"""
        self._running: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        taken = [*tensors_in(args), *tensors_in(kwargs or {})]
        made = {id(each): each for each in tensors_in(result)}
        rank = max((each.ndim for each in made.values()), default=0)
        name, number = func.overloadpacket.__name__, len(self.operations)
        operation = Operation(name, number, tuple(map(id, taken)), tuple(self._running), rank)
        self.operations.append(operation)
        for memory in {_memory_of(each) for each in written_to(func, args, kwargs or {})}:
            made |= self._sharing.get(memory, {})
            self._written[memory] = operation.number
        for each in made.values():
            self._made_by.setdefault(id(each), []).append(operation)
        for each in (*made.values(), *taken):
            self._sharing.setdefault(_memory_of(each), {})[id(each)] = each
        return result

    @contextmanager
    def of(self, modules: Mapping[str, nn.Module]) -> Iterator[Trace]:
        """Record what runs inside the block, with the modules by path."""
        paths: dict[nn.Module, str] = {}
        for path, module in modules.items():
            paths.setdefault(module, path)
        with ExitStack() as stack:
            for module, path in paths.items():
                if not isinstance(module, torch.jit.ScriptModule):
                    stack.callback(module.register_forward_pre_hook(self._entering(path), with_kwargs=True).remove)
                    stack.callback(module.register_forward_hook(self._leaving(path), with_kwargs=True).remove)
            with self:
                yield self

    def sources(self, tensor: Tensor) -> tuple[list[Operation], list[Operation]]:
        """The mixing operations from which a tensor comes with no other one in between, and all operations after them.

        Args:
            tensor: of the recorded pass.
        """
        mixing: list[Operation] = []
        after: list[Operation] = []
        seen, waiting = set(), [id(tensor)]
        while waiting:
            for operation in self._made_by.get(waiting.pop(), ()):
                if operation.number in seen:
                    continue
                seen.add(operation.number)
                (mixing if operation.mixes else after).append(operation)
                if not operation.mixes:
                    waiting.extend(operation.takes)
        return sorted(mixing, key=lambda operation: operation.number), after

    def written_after(self, call: Call) -> bool:
        """Whether the memory of what a module gave was written to after the module had run."""
        return any(self._written.get(_memory_of(given), -1) >= call.ended for given in tensors_in(call.gives))

    def call_of(self, path: str) -> Call | None:
        """The last run of a module."""
        return next((call for call in reversed(self.calls) if call.path == path), None)

    def _entering(self, path: str) -> Callable[..., None]:
        def enter(module: nn.Module, args: Any, kwargs: Any) -> None:
            self._running.append(path)

        return enter

    def _leaving(self, path: str) -> Callable[..., None]:
        def leave(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            self._running.pop()
            self.calls.append(Call(path, args if tensors_in(args) else kwargs, output, len(self.operations)))

        return leave


def _memory_of(tensor: Tensor) -> int:
    """What names the memory of a tensor; its id if it has none of its own, as a sparse one."""
    try:
        return int(tensor.untyped_storage()._cdata)
    except (NotImplementedError, RuntimeError):
        return id(tensor)


def written_to(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Tensor]:
    """The tensors that an operation writes to, among its arguments.

    Args:
        func: as a ``TorchDispatchMode`` gets it.
        args: by position.
        kwargs: by name.

    >>> x = torch.ones(2)
    >>> [each is x for each in written_to(torch.ops.aten.add_.Tensor, (x, torch.ones(2)), {})]
    [True]
    """
    if not func._schema.is_mutable:
        return []
    given = [args[at] if at < len(args) else kwargs.get(each.name) for at, each in enumerate(func._schema.arguments)]
    written = [each.alias_info is not None and each.alias_info.is_write for each in func._schema.arguments]
    return [tensor for value, writes in zip(given, written, strict=True) if writes for tensor in tensors_in(value)]


def common_path(stacks: Sequence[tuple[str, ...]]) -> str:
    """The innermost module that all share."""
    common = ""
    for level in zip(*stacks, strict=False):
        if len(set(level)) > 1:
            break
        common = level[0]
    return common


def tensors_in(value: Any) -> list[Tensor]:
    """The tensors in arguments or results; in mappings, tuples and lists as well.

    >>> len(tensors_in((torch.ones(1), [torch.ones(2), 3], {"a": torch.ones(3)})))
    3
    """
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Mapping):
        return [tensor for item in value.values() for tensor in tensors_in(item)]
    if isinstance(value, (tuple, list)):
        return [tensor for item in value for tensor in tensors_in(item)]
    return []
