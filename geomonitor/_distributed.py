"""What the processes of a distributed run agree on; with one process there is nothing to agree on."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any, TypeAlias, TypeVar

import torch
import torch.distributed

from geomonitor.errors import InputError

T = TypeVar("T")
Group: TypeAlias = "torch.distributed.ProcessGroup | Callable[[], torch.distributed.ProcessGroup] | None"
"""A process group; a function that returns it, for one that exists only once the run has begun; None: all processes."""


class Processes:
    """The processes that measure together: those of a process group, or this one alone.

    Every process of the group has to call the same methods in the same order; others take no part.

    Args:
        group: which processes; a function is called once, when the group is needed.

    >>> Processes().rank, Processes().size, Processes().gathered("mine")
    (0, 1, ['mine'])
    """

    def __init__(self, group: Group = None) -> None:
        self._given = group if callable(group) else _checked(group)
        self._found: torch.distributed.ProcessGroup | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> Processes:
        return self  # a process group cannot be copied

    def __reduce__(self) -> tuple[Any, ...]:
        return Processes, (self._given,)

    @property
    def group(self) -> torch.distributed.ProcessGroup | None:
        """The group; None for the default one.

        Raises:
            InputError: this process is not in it, or the function returned something else.
        """
        if self._given is None or self._found is not None:
            return self._found
        found = self._given() if callable(self._given) else self._given
        if found is None or torch.distributed.get_rank(_checked(found)) < 0:
            raise InputError("this process is not in process_group: make no monitor in it")
        self._found = found
        return found

    @property
    def rank(self) -> int:
        """Number of this process among them, from 0."""
        return torch.distributed.get_rank(self.group) if _distributed() else 0

    @property
    def size(self) -> int:
        """How many there are."""
        return torch.distributed.get_world_size(self.group) if _distributed() else 1

    @property
    def names(self) -> list[int]:
        """Their ranks in the whole run, which messages name."""
        if not _distributed():
            return [0]
        # Older versions of torch do not take None for the group of all.
        return torch.distributed.get_process_group_ranks(self.group or torch.distributed.group.WORLD)

    def all(self, succeeded: bool, device: torch.device) -> bool:
        """Whether all processes succeeded; without this, one that failed would leave the others waiting for ever."""
        if self.size == 1:
            return succeeded
        flag = torch.tensor(int(succeeded), device=device)
        torch.distributed.all_reduce(flag, op=torch.distributed.ReduceOp.MIN, group=self.group)
        return bool(flag)

    def largest(self, numbers: list[float], device: torch.device) -> list[float]:
        """The largest of each number over the processes, so that all of them go on with the same ones."""
        if self.size == 1:
            return numbers
        # MPS has no float64, but there is no process group on it either.
        shared = torch.tensor(numbers, dtype=torch.float64, device=device)
        torch.distributed.all_reduce(shared, op=torch.distributed.ReduceOp.MAX, group=self.group)
        return [float(number) for number in shared.cpu()]

    def gathered(self, mine: T) -> list[T]:
        """What each process has, by rank; it is pickled on the way, between the processes of this run only."""
        if self.size == 1:
            return [mine]
        parts: list[T | None] = [None] * self.size
        torch.distributed.all_gather_object(parts, mine, group=self.group)
        return parts  # type: ignore[return-value]

    def of_first(self, mine: T) -> T:
        """What the first of these processes has; it is pickled on the way, as by :meth:`gathered`."""
        if self.size == 1:
            return mine
        shared = [mine]
        torch.distributed.broadcast_object_list(shared, src=self.names[0], group=self.group)
        return shared[0]

    def store(self) -> Any:
        """Keys and values that these processes share, on any backend; None if there are none (MPI)."""
        from torch.distributed.distributed_c10d import PrefixStore, _get_default_store

        try:
            store = _get_default_store()
        except (AttributeError, ValueError):
            return None
        ranks = " ".join(map(str, self.names))
        name = "all" if self.group is None else hashlib.sha256(ranks.encode()).hexdigest()[:16]
        return None if store is None else PrefixStore(f"geomonitor/{name}", store)


def _checked(group: Any) -> Any:
    if group is None or isinstance(group, torch.distributed.ProcessGroup):
        return group
    # torch.distributed.new_group gives a mere number to processes that are not in the new group.
    raise InputError(
        f"process_group must be a torch.distributed.ProcessGroup that this process is in; got {group!r}. Only the "
        "processes of the group measure: make no monitor in the others."
    )


ALL_PROCESSES = Processes()
"""Of the default process group; this one alone without a group."""


def _distributed() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()
