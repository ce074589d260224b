"""A data set is read in a child process: the handles that it opens, what it draws and what it changes stay there.

Many data sets open their file at the first item. If the training process did that, the loader's workers that are forked
later would share its position in the file, and would read wrong samples or none.
"""

from __future__ import annotations

import copy
import gc
import io
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from multiprocessing.connection import Connection, Pipe
from multiprocessing.reduction import ForkingPickler
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import ConcatDataset, Subset, TensorDataset

from geomonitor._random import preserved_rng
from geomonitor.errors import MeasurementError
from geomonitor.probe.handles import own_handles

Read = Callable[[Any], Iterator[Any]]
PATIENCE = 300.0
"""Seconds that the child may take for one piece; beyond, a lock that another thread held at the fork has stopped it."""
BEGIN_SECONDS, ATTEMPTS = 2.0, 5
"""Seconds in which the child has set its random streams, which takes milliseconds, and how often one is made."""
_BEGIN, _PIECE, _END, _FAILURE = b"b", b"p", b"e", b"f"
_IN_MEMORY = (TensorDataset, list, tuple, range)
_WAY_OUT = "Otherwise read the items yourself: ProbeSet.from_dataset([dataset[i] for i in range(len(dataset))])"


def is_in_memory(dataset: Any) -> bool:
    """Whether to read it opens nothing: tensors, arrays, lists, and parts of these.

    >>> is_in_memory(Subset(TensorDataset(torch.zeros(4, 2)), [0, 1]))
    True
    """
    kind = type(dataset)
    if isinstance(dataset, Subset) and kind.__getitem__ is Subset.__getitem__:
        return is_in_memory(dataset.dataset)
    if isinstance(dataset, ConcatDataset) and kind.__getitem__ is ConcatDataset.__getitem__:
        return all(map(is_in_memory, dataset.datasets))
    if isinstance(dataset, (Tensor, np.ndarray)):
        return True
    return any(isinstance(dataset, base) and kind.__getitem__ is base.__getitem__ for base in _IN_MEMORY)


def read_apart(source: Read, dataset: Any) -> Iterator[bytes]:
    """What ``source(dataset)`` yields, one after the other, as :func:`unpacked` takes it.

    Where processes are forked (Linux), a child reads, in random streams that start from one seed. Elsewhere (Windows,
    macOS) a deep copy of the data set is read, or the data set itself if it cannot be copied: the loader's workers get
    copies there, and share no position with this process. A data set on a GPU is read here, for it can be read in no
    child.

    Args:
        source: yields objects that can be pickled.
        dataset: what it is called with.

    Yields:
        Packed objects.

    Raises:
        MeasurementError: the child died, or stands still.
        Exception: what ``source`` raised.

    >>> [unpacked(piece) for piece in read_apart(iter, "ab")]
    ['a', 'b']
    """
    if not _can_fork():
        yield from _read_copy(source, dataset)
        return
    child, receiving = _begun(source, dataset)
    kind = _BEGIN
    try:
        while kind in {_BEGIN, _PIECE}:
            kind, content = _next_of(child, receiving, type(dataset).__name__)
            if kind == _PIECE:
                yield content
    finally:
        receiving.close()
        _stop(child)
    if kind == _FAILURE:
        error, trace = unpacked(content)
        if not (torch.cuda.is_initialized() and "CUDA" in trace):  # type: ignore[no-untyped-call]
            raise error from MeasurementError(f"in the process that reads the data set:\n{trace}")
        with preserved_rng():
            yield from map(_packed, source(dataset))


def read(source: Read, dataset: Any) -> Iterator[Any]:
    """As :func:`read_apart`, unpacked; what :func:`is_in_memory` is read here, in random streams of its own.

    >>> list(read(iter, [3, 5]))
    [3, 5]
    """
    if is_in_memory(dataset):
        with preserved_rng():
            yield from source(dataset)
    else:
        yield from map(unpacked, read_apart(source, dataset))


def unpacked(piece: bytes) -> Any:
    """The object, made anew at each call."""
    return ForkingPickler.loads(piece)


def _can_fork() -> bool:
    # On macOS a forked process may not use the system's libraries: Python does not fork there by default.
    return hasattr(os, "fork") and sys.platform != "darwin"


def _read_copy(source: Read, dataset: Any) -> Iterator[bytes]:
    with suppress(Exception):  # open files, locks: such a data set cannot go to a worker either
        dataset = copy.deepcopy(dataset)
    with preserved_rng():
        yield from map(_packed, source(dataset))


def _begun(source: Read, dataset: Any) -> tuple[int, Connection]:
    """A child that reads, and the end of a pipe to which it writes.

    A lock that another thread holds at the fork, such as that of torch's generator while a thread draws, stays closed
    in the child for ever: a child that does not begin is replaced.
    """
    for attempt in range(ATTEMPTS):
        receiving, sending = Pipe(duplex=False)
        child = _fork()
        if child == 0:
            receiving.close()
            _serve(sending, source, dataset)
        sending.close()
        if attempt == ATTEMPTS - 1 or receiving.poll(BEGIN_SECONDS):
            break
        receiving.close()
        _stop(child)
    return child, receiving


def _fork() -> int:
    if sys.version_info < (3, 12):
        return os.fork()
    with warnings.catch_warnings():
        # From 3.12 on Python warns of threads, which may hold a lock at the fork: see PATIENCE.
        warnings.filterwarnings("ignore", message=".*fork.*")
        return os.fork()


def _serve(sending: Connection, source: Read, dataset: Any) -> NoReturn:
    """The whole life of the child: nothing that it inherited is finalised, flushed or closed."""
    code = 1
    try:
        gc.disable()  # what the parent has dropped in cycles, such as a loader, would be shut down from here
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent stops this process
        torch.set_num_threads(1)  # the threads of OpenMP do not exist in a forked process
        with own_handles():
            try:
                with preserved_rng():
                    sending.send_bytes(_BEGIN)
                    for found in source(dataset):
                        sending.send_bytes(_packed(found, _PIECE))
                sending.send_bytes(_END)
            except BaseException as error:  # noqa: BLE001 - the parent raises it
                sending.send_bytes(_packed_failure(error))
        code = 0
    finally:
        os._exit(code)


def _next_of(child: int, receiving: Connection, name: str) -> tuple[bytes, bytes]:
    if not receiving.poll(PATIENCE):
        raise MeasurementError(
            f"the process that reads {name} has given nothing for {PATIENCE:.0f} s: its items need a thread or a "
            f"lock of this process. Read them without one. {_WAY_OUT}"
        )
    try:
        message = receiving.recv_bytes()
    except EOFError:
        raise MeasurementError(
            f"the process that reads {name} has died{_cause_of_death(child)}: out of memory, or a library that does "
            f"not work in a forked process. {_WAY_OUT}"
        ) from None
    return message[:1], message[1:]


def _cause_of_death(child: int) -> str:
    with suppress(ChildProcessError):
        _, status = os.waitpid(child, 0)
        code = os.waitstatus_to_exitcode(status)
        return f" of signal {-code}" if code < 0 else f" with exit code {code}"
    return ""


def _stop(child: int) -> None:
    with suppress(ProcessLookupError, ChildProcessError):
        if os.waitpid(child, os.WNOHANG) == (0, 0):
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)


class _Packer(ForkingPickler):
    """Tensors as their own numbers: not the whole storage that they are a part of, and no shared memory."""

    def reducer_override(self, found: Any) -> Any:
        if isinstance(found, (torch.UntypedStorage, torch.TypedStorage)):
            return found.__reduce__()  # type: ignore[no-untyped-call]
        if not isinstance(found, Tensor):
            return NotImplemented
        if type(found) is nn.Parameter:
            return nn.Parameter, (found.detach(), found.requires_grad)
        if type(found) is Tensor and _is_plain(found):
            plain = found.detach().resolve_conj().resolve_neg().contiguous()
            numbers = bytearray(plain.reshape(-1).view(torch.uint8).numpy())
            return _tensor_of, (numbers, plain.dtype, tuple(plain.shape))
        alone = found.detach().clone() if _is_plain(found) else found
        return alone.__reduce_ex__(2)  # type: ignore[no-untyped-call]


def _is_plain(tensor: Tensor) -> bool:
    return tensor.layout is torch.strided and not tensor.is_quantized and tensor.device.type == "cpu"


def _tensor_of(numbers: bytearray, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    flat = torch.frombuffer(numbers, dtype=dtype) if numbers else torch.empty(0, dtype=dtype)
    return flat.reshape(shape)


def _packed(found: Any, kind: bytes = b"") -> bytes:
    file = io.BytesIO()
    file.write(kind)
    _Packer(file).dump(found)
    return file.getvalue()


def _packed_failure(error: BaseException) -> bytes:
    trace = "".join(traceback.format_exception(error))
    try:
        packed = _packed((error, trace), _FAILURE)
        unpacked(packed[1:])  # some errors can be packed, but not be made again
    except Exception:  # noqa: BLE001 - its text is sent
        packed = _packed((MeasurementError(f"{type(error).__name__}: {error}"), trace), _FAILURE)
    return packed
