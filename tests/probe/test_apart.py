"""A dataset is read outside of the training process: its handles, its state and its random streams stay as they are."""

from __future__ import annotations

import copy
import functools
import os
import pickle
import random
import signal
import socket
import threading
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset, TensorDataset

import geomonitor as gm
from geomonitor.probe import apart, kept
from geomonitor.probe.apart import is_in_memory, read, read_apart, unpacked
from geomonitor.probe.handles import leave_open_handles, own_handles
from tests.loads import Loads

pytestmark = pytest.mark.filterwarnings("ignore:.*gives other items each time", "ignore:whether the data stay the same")
COUNT, WIDTH = 240, 16
forks = pytest.mark.skipif(not apart._can_fork(), reason="needs fork")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of rows that hold their own number."""
    folder = tmp_path_factory.mktemp("data")
    rows = np.repeat(np.arange(COUNT, dtype="<f4")[:, None], WIDTH, 1)
    rows.tofile(folder / "rows.bin")
    with zipfile.ZipFile(folder / "rows.zip", "w") as file:
        for number, row in enumerate(rows):
            file.writestr(str(number), row.tobytes())
    return folder


class Rows(Dataset[Any]):
    """Rows of a file; how it is opened and read is up to a subclass."""

    handle: Any = None

    def __init__(self, folder: Path, *, at_once: bool = False) -> None:
        self.folder = folder
        self.targets = [number % 4 for number in range(COUNT)]
        if at_once:
            self.handle = self.open()

    def __len__(self) -> int:
        return COUNT

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        if self.handle is None:
            self.handle = self.open()
        return torch.frombuffer(bytearray(self.bytes_of(index)), dtype=torch.float32), index % 4

    def open(self) -> Any:
        return (self.folder / "rows.bin").open("rb", buffering=0)

    def bytes_of(self, index: int) -> bytes:
        self.handle.seek(4 * WIDTH * index)
        content: bytes = self.handle.read(4 * WIDTH)
        return content


class Buffered(Rows):
    def open(self) -> Any:
        return (self.folder / "rows.bin").open("rb")


class Zipped(Rows):
    def open(self) -> Any:
        return zipfile.ZipFile(self.folder / "rows.zip")

    def bytes_of(self, index: int) -> bytes:
        content: bytes = self.handle.read(str(index))
        return content


class Descriptor(Rows):
    """As libraries in C read: a number of a file, and its position in the system."""

    def open(self) -> int:
        return os.open(self.folder / "rows.bin", os.O_RDONLY)

    def bytes_of(self, index: int) -> bytes:
        os.lseek(self.handle, 4 * WIDTH * index, os.SEEK_SET)
        return os.read(self.handle, 4 * WIDTH)


@functools.cache
def opened_once(path: Path) -> Any:
    return path.open("rb")


class InAGlobal(Rows):
    """The handle belongs to no object."""

    def open(self) -> Any:
        return opened_once(self.folder / "rows.bin")


class InTheClass(Rows):
    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        if type(self).handle is None:
            type(self).handle = self.open()
        return super().__getitem__(index)


KINDS = [Rows, Buffered, Zipped, Descriptor, InAGlobal, InTheClass]


def monitor_of(dataset: Any, **options: Any) -> gm.GeometryMonitor:
    probe = gm.ProbeSet.from_dataset(dataset, per_class=10, **options)
    return gm.GeometryMonitor(probe, panel=None, markers=["rankme"], on_error="raise")


def model() -> nn.Module:
    return nn.Sequential(nn.Linear(WIDTH, 8), nn.ReLU(), nn.Linear(8, 4))


def children_of_this_process() -> set[str]:
    return {child for task in Path("/proc/self/task").iterdir() for child in (task / "children").read_text().split()}


def handles_of(folder: Path) -> list[str]:
    """Open files of this process in a folder."""
    found = []
    for handle in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{handle}")
        except OSError:  # that of the listing
            continue
        found += [target] if target.startswith(str(folder)) else []
    return found


def seen(dataset: Any, monitored: bool) -> list[float]:
    """First numbers of what two workers read in three epochs, in the order in which training gets them."""
    torch.manual_seed(3)
    train = Subset(dataset, range(160))
    monitor = monitor_of(Subset(dataset, range(160, COUNT))) if monitored else None
    network, numbers = model(), []
    for epoch in range(3):
        for x, y in DataLoader(train, batch_size=8, num_workers=2, shuffle=True, multiprocessing_context="fork"):
            assert (x == x[:, :1]).all()
            assert torch.equal(x[:, 0] % 4, y.float())
            numbers += x[:, 0].tolist()
        if monitor is not None:
            monitor.measure(network, step=epoch)
    return numbers


@forks
class TestHandles:
    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("stored", [True, False], ids=["stored labels", "labels of the items"])
    def test_what_is_opened_at_the_first_item_is_not_opened_here(self, folder: Path, kind: Any, stored: bool) -> None:
        dataset = kind(folder)
        if not stored:
            del dataset.targets
        before = handles_of(folder)  # those of other tests: a class and a global keep theirs
        monitor_of(dataset).measure(model(), step=1)
        assert dataset.handle is None
        assert handles_of(folder) == before

    @pytest.mark.parametrize("kind", KINDS)
    def test_forked_workers_get_the_right_items_in_the_same_order(self, folder: Path, kind: Any) -> None:
        assert seen(kind(folder), monitored=True) == seen(kind(folder), monitored=False)

    @pytest.mark.parametrize("kind", [Rows, Buffered, Zipped, Descriptor])
    def test_what_is_open_before_keeps_its_position(self, folder: Path, kind: Any) -> None:
        dataset = kind(folder, at_once=True)
        dataset[3]
        before = {handle: position(handle) for handle in open_numbers(folder)}
        values = [monitor_of(dataset).measure(model(), step=step)[0].value for step in (1, 2)]
        assert before
        assert {handle: position(handle) for handle in open_numbers(folder)} == before
        assert np.isfinite(values).all()
        assert dataset[5][0].tolist() == [5.0] * WIDTH
        close(dataset.handle)

    def test_a_file_that_is_read_on_and_on_goes_on_where_it_was(self, tmp_path: Path) -> None:
        (tmp_path / "lines").write_text("".join(f"{number}\n" for number in range(20_000)))
        file = (tmp_path / "lines").open()
        assert file.readline() == "0\n"

        class Streamed(Rows):
            def bytes_of(self, index: int) -> bytes:
                file.seek(60_000)
                file.readline()
                return np.full(WIDTH, index, "<f4").tobytes()

        np.zeros((COUNT, WIDTH), "<f4").tofile(tmp_path / "rows.bin")
        monitor_of(Streamed(tmp_path)).measure(model(), step=1)
        with file:
            assert [file.readline() for _ in range(15_000)] == [f"{number}\n" for number in range(1, 15_001)]

    def test_a_file_that_may_not_be_opened_again_is_put_back(self, folder: Path, monkeypatch: Any) -> None:
        def refused(*_: Any) -> None:
            raise PermissionError

        monkeypatch.setattr("geomonitor.probe.handles._open_again", refused)
        with (folder / "rows.bin").open("rb", buffering=0) as file:
            file.seek(40)
            child = os.fork()
            if child == 0:
                with own_handles():
                    file.seek(0)
                os._exit(0)
            os.waitpid(child, 0)
            assert file.tell() == 40

    def test_a_collate_function_may_open_a_file(self, folder: Path) -> None:
        reader = Buffered(folder)

        def collate(indices: list[int]) -> tuple[Tensor, Tensor]:
            items = [reader[index] for index in indices]
            return torch.stack([x for x, _ in items]), torch.tensor([y for _, y in items])

        numbers = list(range(COUNT))
        probe = gm.ProbeSet.from_dataset(
            [(number, number % 4) for number in numbers],
            per_class=4,
            collate_fn=lambda items: collate([item[0] for item in items]),
        )
        (batch,) = probe.loader()
        assert batch.inputs[:, 0].tolist() == probe.indices[batch.ids].tolist()
        assert reader.handle is None

    def test_a_connection_leads_nowhere_and_is_not_read(self, folder: Path) -> None:
        ours, theirs = socket.socketpair()

        class Remote(Rows):
            def bytes_of(self, index: int) -> bytes:
                ours.sendall(b"row please")
                return b""

        with ours, theirs:
            with pytest.raises(OSError, match="socket"):
                monitor_of(Remote(folder)).measure(model(), step=1)
            theirs.setblocking(False)
            with pytest.raises(BlockingIOError):
                theirs.recv(1)

    def test_workers_of_the_probes_own_loader_leave_open_handles(self, folder: Path) -> None:
        dataset = Descriptor(folder, at_once=True)
        probe = gm.ProbeSet.from_dataset(dataset, per_class=4)
        (batch,) = probe.loader(num_workers=1)
        assert batch.inputs[:, 0].tolist() == probe.indices[batch.ids].tolist()
        assert position(dataset.handle) == 0
        os.close(dataset.handle)


def close(handle: Any) -> None:
    if isinstance(handle, int):
        os.close(handle)
    else:
        handle.close()


def open_numbers(folder: Path) -> list[int]:
    found = []
    for handle in os.listdir("/proc/self/fd"):
        try:
            if os.readlink(f"/proc/self/fd/{handle}").startswith(str(folder)):
                found.append(int(handle))
        except OSError:
            continue
    return sorted(found)


def position(handle: int) -> int:
    return os.lseek(handle, 0, os.SEEK_CUR)


class Noisy(Dataset[Any]):
    """Random transforms from all streams, from a generator of its own, and a count of what was read."""

    def __init__(self) -> None:
        self.generator = np.random.default_rng(0)
        self.loads = Loads()
        self.read = 0

    def __len__(self) -> int:
        return 40

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        self.loads.append(index)
        self.read += 1
        drawn = [random.random(), np.random.rand(), self.generator.random(), float(torch.rand(()))]
        return torch.tensor([*drawn, index % 4, index]), index % 4


class TestState:
    def test_random_items_are_the_same_at_each_measurement_and_no_stream_moves(self) -> None:
        dataset = Noisy()
        before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
        probe = gm.ProbeSet.from_dataset(dataset, per_class=4)
        first, second = (torch.cat([batch.inputs for batch in probe.loader(8)]) for _ in range(2))
        assert torch.equal(first, second)
        assert len(first[:, :4].unique()) == 64
        assert (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()) == before
        again = gm.ProbeSet.from_dataset(Noisy(), per_class=4)
        assert torch.equal(torch.cat([batch.inputs for batch in again.loader(8)]), first)

    @forks
    def test_the_dataset_is_as_it_was(self) -> None:
        dataset = Noisy()
        before = dataset.generator.bit_generator.state
        list(gm.ProbeSet.from_dataset(dataset, per_class=4).loader())
        assert (dataset.read, dataset.generator.bit_generator.state) == (0, before)


class TestKept:
    def test_items_are_read_once(self) -> None:
        dataset = Noisy()
        probe = gm.ProbeSet.from_dataset(dataset, per_class=4)
        dataset.loads.clear()
        for _ in range(3):
            list(probe.loader(8))
        assert sorted(dataset.loads) == sorted(probe.indices.tolist())

    def test_other_batches_are_read_again(self) -> None:
        probe = gm.ProbeSet.from_dataset(Noisy(), per_class=4)
        for batch_size, readings in ((8, 1), (8, 1), (4, 2), (4, 2)):
            list(probe.loader(batch_size))
            assert probe._kept.readings == readings

    def test_parts_of_ranks_are_kept_apart(self) -> None:
        probe = gm.ProbeSet.from_dataset(Noisy(), per_class=4)
        found = [
            torch.cat([batch.inputs for batch in probe.loader(8, rank=rank, world_size=2)])[:, -1].tolist()
            for rank in (0, 1, 0)
        ]
        assert found[0] == found[2]
        assert sorted(found[0] + found[1]) == sorted(probe.indices.tolist())

    def test_later_measurements_start_no_process(self, folder: Path, monkeypatch: Any) -> None:
        monitor, network = monitor_of(Rows(folder)), model()
        first = monitor.measure(network, step=1)[0].value

        def forked() -> int:
            raise AssertionError("a child")

        monkeypatch.setattr(os, "fork", forked)
        assert [monitor.measure(network, step=step)[0].value for step in (2, 3)] == [first, first]

    def test_data_that_change_before_they_are_kept_are_noticed(self) -> None:
        numbers = torch.arange(20.0)
        probe = gm.ProbeSet.from_dataset(of_item(lambda index: numbers[index : index + 1]), per_class=4)
        numbers += 1
        with pytest.raises(gm.MeasurementError, match="have changed since it was made"):
            probe.check_content()
        numbers -= 1
        kept_batches = torch.cat([batch.inputs for batch in probe.loader()])
        numbers += 1
        probe.check_content()
        assert torch.equal(torch.cat([batch.inputs for batch in probe.loader()]), kept_batches)

    def test_what_was_begun_only_is_not_kept(self) -> None:
        probe = gm.ProbeSet.from_dataset(Noisy(), per_class=4)
        next(probe.loader(4))
        assert len(list(probe.loader(4))) == 4

    @pytest.mark.parametrize("budget", [0, 300])
    def test_beyond_the_budget_every_measurement_reads(self, monkeypatch: Any, budget: int) -> None:
        monkeypatch.setattr(kept, "MOST_BYTES", budget)
        probe = gm.ProbeSet.from_dataset(Noisy(), per_class=4)
        first, second = (torch.cat([batch.inputs for batch in probe.loader(4)]) for _ in range(2))
        assert torch.equal(first, second)
        assert probe._kept.readings == 2
        assert probe._kept._pieces == []

    @pytest.mark.parametrize("copied", [copy.deepcopy, lambda probe: pickle.loads(pickle.dumps(probe))])
    def test_a_copy_of_the_probe_holds_nothing(self, folder: Path, copied: Any) -> None:
        probe = gm.ProbeSet.from_dataset(Rows(folder), per_class=4)
        whole = [batch.inputs for batch in probe.loader()]
        other = copied(probe)
        assert other._kept._pieces == []
        assert torch.equal(torch.cat([batch.inputs for batch in other.loader()]), torch.cat(whole))

    def test_a_model_that_writes_to_its_inputs_writes_to_a_copy(self, folder: Path) -> None:
        probe = gm.ProbeSet.from_dataset(Rows(folder), per_class=1, collate_fn=lambda items: items[0])
        first = [batch.inputs.clone().tolist() for batch in probe.loader(1) if batch.inputs.mul_(1)[0] >= 0]
        for batch in probe.loader(1):
            batch.inputs.zero_()
        assert [batch.inputs.tolist() for batch in probe.loader(1)] == first


class Silent(Exception):  # noqa: N818 - what it is called does not matter
    """Can be packed, but not be made again."""

    def __init__(self, one: int, two: int) -> None:
        super().__init__(f"{one} and {two}")


def of_item(get: Any) -> Any:
    class Items(Dataset[Any]):
        def __len__(self) -> int:
            return 20

        def __getitem__(self, index: int) -> Any:
            return get(index), index % 2

    return Items()


@forks
class TestFailures:
    @pytest.mark.parametrize(
        ("end", "message"),
        [
            (
                lambda _: os.kill(os.getpid(), signal.SIGKILL),
                "has died of signal 9: .*Otherwise read the items yourself",
            ),
            (lambda _: os._exit(3), "has died with exit code 3"),
        ],
    )
    def test_a_child_that_dies(self, end: Any, message: str) -> None:
        with pytest.raises(gm.MeasurementError, match=f"the process that reads Items {message}"):
            gm.ProbeSet.from_dataset(of_item(end), per_class=2)

    def test_a_child_that_stands_still_is_stopped(self, monkeypatch: Any) -> None:
        monkeypatch.setattr(apart, "PATIENCE", 0.2)
        lock = threading.Lock()
        lock.acquire()
        started = Loads()

        def get(_: int) -> None:
            started.append(os.getpid())
            lock.acquire()

        with pytest.raises(gm.MeasurementError, match="has given nothing for"):
            gm.ProbeSet.from_dataset(of_item(get), per_class=2)
        with pytest.raises(ProcessLookupError):
            os.kill(next(iter(started)), 0)

    def test_an_error_of_the_dataset_is_raised_with_its_place(self) -> None:
        def get(index: int) -> None:
            raise KeyError(f"no row {index}")

        with pytest.raises(KeyError, match="no row 0") as found:
            gm.ProbeSet.from_dataset(of_item(get), per_class=2)
        assert "in get" in str(found.value.__cause__)

    @pytest.mark.parametrize("error", [Silent(1, 2), type("Local", (ValueError,), {})("1 and 2")])
    def test_an_error_that_cannot_be_sent_is_named(self, error: Exception) -> None:
        def get(_: int) -> None:
            raise error

        with pytest.raises(gm.MeasurementError, match=rf"{type(error).__name__}: 1 and 2"):
            gm.ProbeSet.from_dataset(of_item(get), per_class=2)

    def test_an_item_that_cannot_be_sent_is_an_error(self) -> None:
        probe = gm.ProbeSet.from_dataset(
            of_item(lambda _: lambda: None), per_class=2, collate_fn=lambda items: (items, 0)
        )
        with pytest.raises(Exception, match="pickle"):
            list(probe.loader())

    def test_in_a_run_it_is_nan_with_a_warning(self) -> None:
        dies = Loads()

        def get(_: int) -> Tensor:
            if len(dies):
                os._exit(5)
            return torch.zeros(WIDTH)

        dataset = of_item(get)
        dataset.targets = [index % 2 for index in range(20)]
        monitor = gm.GeometryMonitor(gm.ProbeSet.from_dataset(dataset, per_class=2), panel=None, markers=["rankme"])
        dies.append(1)
        with pytest.warns(gm.GeomonitorWarning, match="has died with exit code 5"):
            records = monitor.measure(model(), step=1)
        assert np.isnan(records[0].value)

    def test_no_child_is_left_and_no_descriptor(self, folder: Path) -> None:
        probe = gm.ProbeSet.from_dataset(Rows(folder), per_class=4)
        before, children = sorted(os.listdir("/proc/self/fd")), children_of_this_process()
        for batch_size in (3, 5, 7):
            next(probe.loader(batch_size))
            list(probe.loader(batch_size))
        assert sorted(os.listdir("/proc/self/fd")) == before
        assert children_of_this_process() <= children  # of other tests, which may end meanwhile


@forks
class TestForks:
    def test_threads_of_openmp_in_this_process(self) -> None:
        threads = torch.get_num_threads()
        try:
            torch.set_num_threads(2)
            (torch.rand(400, 400) @ torch.rand(400, 400)).exp().sum()
            dataset = of_item(lambda index: torch.full((300, 300), float(index)).exp().sum().reshape(1))
            probe = gm.ProbeSet.from_dataset(dataset, per_class=3)
            assert len(list(probe.loader())) == 1
            assert torch.get_num_threads() == 2
        finally:
            torch.set_num_threads(threads)

    def test_other_threads_that_draw_and_measure(self, folder: Path) -> None:
        done = threading.Event()

        def draw() -> None:
            while not done.is_set():
                torch.rand(10)

        others = [threading.Thread(target=draw) for _ in range(2)]
        for thread in others:
            thread.start()
        try:
            for _ in range(5):
                (batch,) = gm.ProbeSet.from_dataset(Zipped(folder), per_class=4).loader()
                assert (batch.inputs[:, 0] % 4 == batch.labels).all()
        finally:
            done.set()
            for thread in others:
                thread.join()

    def test_a_dataset_on_a_gpu_is_read_here(self, monkeypatch: Any) -> None:
        """No GPU is needed: what CUDA says in a forked process is said by the dataset."""
        monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
        monkeypatch.setattr(torch.cuda, "get_rng_state_all", list)
        monkeypatch.setattr(torch.cuda, "set_rng_state_all", lambda _: None)
        monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda _: None)
        parent = os.getpid()

        def get(index: int) -> Tensor:
            if os.getpid() != parent:
                raise RuntimeError("Cannot re-initialize CUDA in forked subprocess.")
            return torch.full((2,), float(index))

        probe = gm.ProbeSet.from_dataset(of_item(get), per_class=2)
        assert [len(batch.ids) for batch in probe.loader()] == [4]


class TestWithoutFork:
    @pytest.fixture(autouse=True)
    def no_fork(self, monkeypatch: Any) -> None:
        monkeypatch.setattr(apart, "_can_fork", lambda: False)
        monkeypatch.delattr(os, "fork")

    @pytest.mark.parametrize("kind", [Descriptor, Zipped])
    def test_a_copy_is_read(self, folder: Path, kind: Any) -> None:
        dataset = kind(folder)
        monitor_of(dataset).measure(model(), step=1)
        assert dataset.handle is None

    def test_what_cannot_be_copied_is_read_itself(self, folder: Path) -> None:
        dataset = Zipped(folder, at_once=True)
        assert np.isfinite(monitor_of(dataset).measure(model(), step=1)[0].value)

    def test_an_error_is_that_of_the_dataset(self) -> None:
        def get(_: int) -> None:
            raise KeyError("x")

        with pytest.raises(KeyError):
            gm.ProbeSet.from_dataset(of_item(get), per_class=2)


TENSORS = TensorDataset(torch.arange(120.0).reshape(40, 3).sin(), torch.arange(40) % 4)


class Subclass(TensorDataset):
    def __getitem__(self, index: int) -> Any:
        return super().__getitem__(index)


class TestInMemory:
    @pytest.mark.parametrize(
        "dataset",
        [TENSORS, Subset(TENSORS, range(20)), ConcatDataset([TENSORS, Subset(TENSORS, [1])]),
         [(torch.zeros(3), n % 4) for n in range(40)], DataLoader(TENSORS).dataset],
        ids=range(5),
    )  # fmt: skip
    def test_nothing_is_forked(self, dataset: Any, monkeypatch: Any) -> None:
        def forked() -> int:
            raise AssertionError("a child")

        monkeypatch.setattr(os, "fork", forked)
        assert is_in_memory(dataset)
        assert list(gm.ProbeSet.from_dataset(dataset, per_class=2).loader())

    @pytest.mark.parametrize("dataset", [Noisy(), Subset(Noisy(), [1]), Subclass(*TENSORS.tensors)], ids=range(3))
    def test_everything_else_is_read_apart(self, dataset: Any) -> None:
        assert not is_in_memory(dataset)

    def test_no_fork_by_a_monitor_of_tensors(self, monkeypatch: Any) -> None:
        monkeypatch.delattr(os, "fork", raising=False)
        monitor = gm.GeometryMonitor(gm.ProbeSet.from_dataset(TENSORS, per_class=4), panel=None, markers=["rankme"])
        monitor.measure(nn.Linear(3, 4), step=1)


class Image(Tensor):
    """As libraries name their tensors."""


VALUES = [
    torch.arange(6.0).as_subclass(Image)[2:4],
    torch.tensor(3), torch.zeros(0, 3), torch.arange(6).reshape(2, 3).T, torch.ones(2, dtype=torch.bfloat16),
    torch.tensor([True, False]), torch.ones(2, dtype=torch.complex64).conj(), torch.zeros(2, 2).to_sparse(),
    np.arange(3), "text", {"a": [1, (2.5, None)]}, b"bytes", nn.Parameter(torch.ones(2)),
]  # fmt: skip


class TestPacking:
    @pytest.mark.parametrize("value", VALUES, ids=range(len(VALUES)))
    def test_what_is_read_comes_back(self, value: Any) -> None:
        found = next(read(lambda _: iter([value]), "text"))
        if isinstance(value, Tensor):
            assert (found.dtype, found.layout, type(found)) == (value.dtype, value.layout, type(value))
            assert repr(found) == repr(value)
        else:
            np.testing.assert_equal(found, value)

    def test_a_row_of_a_large_tensor_is_sent_alone(self) -> None:
        large = torch.zeros(10_000, 100)
        (piece,) = read_apart(lambda _: iter([{"row": large[3]}]), "text")
        assert len(piece) < 2000
        (piece,) = read_apart(lambda _: iter([{"row": large.as_subclass(Image)[3]}]), "text")
        assert len(piece) < 2000
        assert torch.equal(unpacked(piece)["row"], large[3])

    def test_each_unpacking_is_another_object(self) -> None:
        (piece,) = read_apart(lambda _: iter([torch.zeros(2)]), "text")
        unpacked(piece).fill_(1)
        assert unpacked(piece).tolist() == [0, 0]


def test_a_system_without_a_list_of_open_files(monkeypatch: Any) -> None:
    monkeypatch.setattr("geomonitor.probe.handles._OPEN_FILES", Path("/nowhere"))
    assert leave_open_handles() == {}
