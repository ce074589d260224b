"""Parameters are watched during a forward pass, and only those that it writes to are copied.

A copy of all would double the memory of the model.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from geomonitor.features.kept import PutBack, sharded
from geomonitor.features.trace import written_to

_WORD = 8
"""Bytes of an ``int64``, in which contiguous weights are summed: one addition for two weights of single precision."""
_INTEGERS = ((1, torch.uint8), (2, torch.int16), (4, torch.int32), (8, torch.int64))


class Written:
    """Which parameters forward passes of a model write to, as far as they have been looked at.

    The first pass is looked at, which costs some microseconds for each operation of torch; later ones begin with
    copies of what was found.
    """

    def __init__(self) -> None:
        self.names: set[str] = set()
        self.looked = False
        """whether a forward pass has been looked at"""


@contextmanager
def before_writes(model: nn.Module, copy: Callable[[str, Tensor], None]) -> Iterator[None]:
    """Report each parameter that an operation inside the block is about to write to, through ``.data`` or a view also.

    Args:
        model: whose parameters; those of one that is sharded are not reported.
        copy: takes name and parameter, before the first write to it.
    """
    if sharded(model):
        yield
        return
    with _BeforeWrites(model, copy):
        yield


class _BeforeWrites(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self, model: nn.Module, copy: Callable[[str, Tensor], None]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._copy = copy
        self._places: dict[int, dict[str, Tensor]] = {}
        for name, parameter in model.named_parameters():
            if _has_plain_values(parameter) and parameter.untyped_storage().nbytes():
                self._places.setdefault(_storage(parameter), {})[name] = parameter

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        for tensor in written_to(func, args, kwargs or {}):
            if _has_plain_values(tensor):
                for name, parameter in self._places.pop(_storage(tensor), {}).items():
                    self._copy(name, parameter)
        return func(*args, **(kwargs or {}))


class ParameterState(NamedTuple):
    """One parameter, without a copy of its values."""

    name: str
    parameter: Tensor
    version: int
    requires_grad: bool
    grad: Tensor | None
    grad_version: int
    values: Tensor | None
    """a view of its storage, to which it returns if ``.data`` was assigned to; None if it is sharded"""
    checksum: Tensor | None
    """of the bits: also finds writes through ``.data``, which the version counter does not count"""


def parameter_states(model: nn.Module) -> list[ParameterState]:
    """What can be known of the parameters without a copy.

    The checksums read the parameters once: 3.4 ms for 11 million on one core, a hundredth of a forward pass of 32
    images through the ResNet that has them.
    """
    whole = not sharded(model)
    return [
        ParameterState(
            name,
            parameter,
            _version(parameter),
            parameter.requires_grad,
            parameter.grad,
            _version(parameter.grad),
            parameter.detach() if whole and type(parameter) is nn.Parameter else None,
            _checksum(parameter) if whole else None,
        )
        for name, parameter in model.named_parameters()
    ]


def weights_checksum(model: nn.Module) -> int | None:
    """Sum of the bits of all parameters, the same in processes that hold the same weights; None if they are sharded."""
    if sharded(model):
        return None
    sums = bits_sums(model.parameters())
    return sum(value * place for place, value in enumerate(sums, 1) if value is not None)


def bits_sums(tensors: Iterable[Tensor]) -> list[int | None]:
    """Sums of the bits of each tensor, the same for the same values; None for those without plain values."""
    return _numbers([_checksum(tensor) for tensor in tensors])


def put_back_parameters(states: Sequence[ParameterState]) -> PutBack:
    """Restore flags, gradients and storage. A failure does not stop the others."""
    restored, failed, first = [], [], None
    for state in states:
        try:
            restored += _put_back(state)
        except Exception as error:  # noqa: BLE001 - all others have to be put back first
            failed.append(state.name)
            first = first or error
    return PutBack(restored, failed, first)


def written_parameters(states: Sequence[ParameterState], restored: Collection[str]) -> list[str]:
    """Names of the parameters whose values or gradients have changed, which cannot be undone.

    Args:
        states: from before.
        restored: names of what has been put back, or was copied: a write that was counted there is undone.
    """
    counted = {
        state.name
        for state in states
        if _version(state.parameter) != state.version or _version(state.grad) != state.grad_version
    }
    before = [state.checksum for state in states]
    now = [None if state.checksum is None else _checksum(state.parameter) for state in states]
    summed = {
        state.name for state, one, other in zip(states, _numbers(before), _numbers(now), strict=True) if one != other
    }
    return [state.name for state in states if state.name in summed or state.name in counted.difference(restored)]


def _put_back(state: ParameterState) -> list[str]:
    name, parameter, restored = state.name, state.parameter, []
    if state.values is not None and _place(parameter) != _place(state.values):
        parameter.data = state.values
        restored.append(name)
    if parameter.requires_grad != state.requires_grad or parameter.grad is not state.grad:
        parameter.requires_grad_(state.requires_grad)
        parameter.grad = state.grad
        restored.append(f"the gradient settings of {name}")
    return restored


def _numbers(sums: list[Tensor | None]) -> list[int | None]:
    """The sums on the CPU, by one transfer for each device."""
    numbers: dict[int, int] = {}
    for device in {total.device for total in sums if total is not None}:
        there = [(place, total) for place, total in enumerate(sums) if total is not None and total.device == device]
        values = torch.stack([total for _, total in there]).tolist()
        numbers |= {place: value for (place, _), value in zip(there, values, strict=True)}
    return [numbers.get(place) for place in range(len(sums))]


def _version(tensor: Tensor | None) -> int:
    # Tensors made in inference mode keep no count.
    return -1 if tensor is None or tensor.is_inference() else tensor._version


def _place(tensor: Tensor) -> tuple[int, torch.Size, torch.dtype]:
    return tensor.data_ptr(), tensor.shape, tensor.dtype


def _checksum(tensor: Tensor) -> Tensor | None:
    """The sum of the bits, exact in any order of addition; None for tensors without plain values."""
    if not _has_plain_values(tensor):
        return None
    bits = tensor.detach()
    if bits.is_contiguous() and bits.nbytes % _WORD == 0 and bits.storage_offset() * bits.element_size() % _WORD == 0:
        return bits.view(-1).view(torch.int64).sum()
    bits = torch.view_as_real(bits) if bits.is_complex() else bits
    integers = dict(_INTEGERS).get(bits.element_size())
    return None if integers is None else bits.view(integers).sum()


def _has_plain_values(tensor: Any) -> bool:
    return type(tensor) in (Tensor, nn.Parameter) and not tensor.is_meta and tensor.layout == torch.strided


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
