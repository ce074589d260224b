"""Run a function in several real processes with a gloo group, for the tests of what crosses processes."""

from __future__ import annotations

import multiprocessing
import os
import random
import socket
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.multiprocessing as mp

FORKSERVER = multiprocessing.get_context("forkserver")
"""starts processes that are forked from one that has imported torch and Lightning once, and has no threads"""
FORKSERVER.set_forkserver_preload(["torch", "lightning.pytorch", "geomonitor.monitor", "geomonitor.metrics"])


def in_processes(
    function: Callable[..., Any], *args: Any, world_size: int = 2, seconds: float = 300, start: str = "forkserver"
) -> list[Any]:
    """Results of ``function(rank, *args)`` by rank; a dead-lock or an error in any process fails the test.

    The function has to be importable (a module's own) and its result picklable. Processes are forked from a server that
    has imported torch once; with ``start="spawn"`` each imports it anew and orders sets of strings in its own way, as
    the processes of a real run do.
    """
    with tempfile.TemporaryDirectory() as folder:
        context = mp.start_processes(
            _worker, (function, args, world_size, folder), nprocs=world_size, join=False, start_method=start
        )
        try:
            if not _joined(context, seconds):
                raise TimeoutError(f"{function.__name__} did not end within {seconds} s on {world_size} processes")
        finally:
            for process in context.processes:
                process.kill()
        return [torch.load(Path(folder, str(rank)), weights_only=False) for rank in range(world_size)]


def free_port() -> int:
    """A port of this machine that nothing listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def as_torchrun_starts(rank: int, port: int, world_size: int = 2) -> None:
    """Give this process the environment that frameworks look for, once it is in a group."""
    own = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world_size, "LOCAL_WORLD_SIZE": world_size}
    os.environ |= {name: str(value) for name, value in own.items()}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}


def _joined(context: Any, seconds: float) -> bool:
    import time

    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if context.join(timeout=1):
            return True
    return False


def _worker(rank: int, function: Callable[..., Any], args: tuple[Any, ...], world_size: int, folder: str) -> None:
    torch.set_num_threads(1)
    random.seed()  # not what the server had, the same on all ranks
    np.random.seed()
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world_size)
    torch.save(function(rank, *args), Path(folder, str(rank)))
    torch.distributed.barrier()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # to destroy a group of gloo hangs once in a hundred times with torch 2.6
