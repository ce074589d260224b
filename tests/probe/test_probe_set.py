"""The same points for ever: chosen by seed, whatever the order, the process or the number of ranks."""

from __future__ import annotations

import pickle
import random
import tracemalloc
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset

from geomonitor.errors import GeomonitorWarning, InputError
from geomonitor.probe.batches import ProbeBatch
from geomonitor.probe.probe_set import ProbeSet
from tests.loads import Loads


def digits(count: int = 200, classes: int = 4) -> TensorDataset:
    """Items whose first value is their index, so that what was loaded can be told."""
    return TensorDataset(torch.arange(count, dtype=torch.float32)[:, None].expand(-1, 3), torch.arange(count) % classes)


def whole(probe: ProbeSet, **options: Any) -> ProbeBatch:
    batches = list(probe.loader(**options))
    return ProbeBatch(*(torch.cat(parts) for parts in zip(*(batch[:3] for batch in batches), strict=True)))


class TestChoice:
    def test_so_many_of_each_class_without_repeats(self) -> None:
        dataset = digits()
        probe = ProbeSet.from_dataset(dataset, per_class=7)
        assert len(probe) == 28
        assert probe.classes == (0, 1, 2, 3)
        assert probe.labels.tolist() == [label for label in range(4) for _ in range(7)]
        assert len(set(probe.indices.tolist())) == 28
        assert torch.equal(dataset.tensors[1][probe.indices], probe.labels)
        assert (probe.indices.dtype, probe.labels.dtype) == (torch.int64, torch.int64)

    def test_another_seed_chooses_other_points(self) -> None:
        chosen = [set(ProbeSet.from_dataset(digits(), per_class=7, seed=s).indices.tolist()) for s in (0, 0, 1)]
        assert chosen[0] == chosen[1]
        # 7 of 50 in each of 4 classes: about 4 of 28 in common by chance
        assert len(chosen[0] & chosen[2]) < 14

    def test_every_point_is_chosen_equally_often(self) -> None:
        counts = torch.zeros(40)
        for seed in range(600):
            counts[ProbeSet.from_dataset(digits(40, 2), per_class=5, seed=seed).indices] += 1
        # binomial(600, 1/4): mean 150, standard deviation 10.6; 40 draws stay within 4.5 of them
        assert counts.min() > 150 - 48
        assert counts.max() < 150 + 48

    def test_a_class_is_chosen_without_regard_to_the_others(self) -> None:
        full = ProbeSet.from_dataset(digits(), per_class=7)
        part = ProbeSet.from_dataset(digits(), per_class=7, classes=[3, 1])
        assert part.classes == (1, 3)
        assert torch.equal(part.indices, full.indices[(full.labels == 1) | (full.labels == 3)])

    def test_fewer_points_are_some_of_more(self) -> None:
        many = ProbeSet.from_dataset(digits(), per_class=20)
        few = ProbeSet.from_dataset(digits(), per_class=5)
        assert set(few.indices.tolist()) < set(many.indices.tolist())

    def test_the_order_of_a_subset_does_not_matter(self) -> None:
        base, order = digits(), torch.randperm(150, generator=torch.Generator().manual_seed(2)).tolist()
        one = ProbeSet.from_dataset(Subset(base, range(150)), per_class=5)
        other = ProbeSet.from_dataset(Subset(base, order), per_class=5)
        assert torch.equal(whole(one).inputs, whole(other).inputs)
        assert one.fingerprint == other.fingerprint

    def test_a_repeated_item_counts_once(self) -> None:
        subset = Subset(digits(), [0, 0, 0, 4, 1, 1, 5, 5])
        assert sorted(whole(ProbeSet.from_dataset(subset, per_class=2)).inputs[:, 0].tolist()) == [0, 1, 4, 5]
        with pytest.raises(InputError, match=r"\{0: 2, 1: 2\}"):
            ProbeSet.from_dataset(subset, per_class=3)

    def test_labels_of_any_integer_value(self) -> None:
        data = TensorDataset(torch.zeros(30, 1), torch.tensor([-1, 7, 10**12] * 10))
        assert ProbeSet.from_dataset(data, per_class=3).classes == (-1, 7, 10**12)

    def test_a_loader_stands_for_its_dataset_and_its_way_to_make_batches(self) -> None:
        def doubled(items: list[Any]) -> Any:
            return torch.stack([2 * x for x, _ in items]), torch.tensor([int(y) for _, y in items])

        probe = ProbeSet.from_dataset(DataLoader(digits(), batch_size=3, collate_fn=doubled), per_class=2)
        found = whole(probe)
        assert torch.equal(found.inputs[:, 0], 2.0 * probe.indices[found.ids])


class TestClasses:
    def test_more_than_twenty_are_sampled_and_it_is_said(self) -> None:
        with pytest.warns(GeomonitorWarning, match="30 classes") as warned:
            probe = ProbeSet.from_dataset(digits(300, 30), per_class=2)
        assert len(probe.classes) == 20
        assert warned[0].filename == __file__
        with pytest.warns(GeomonitorWarning):
            other = ProbeSet.from_dataset(digits(300, 30), per_class=2, seed=1)
        assert other.classes != probe.classes

    def test_a_number_of_classes(self) -> None:
        three, five = (ProbeSet.from_dataset(digits(300, 30), per_class=2, classes=n).classes for n in (3, 5))
        assert len(three) == 3
        assert set(three) < set(five)

    def test_all_of_many_when_asked_for(self) -> None:
        assert len(ProbeSet.from_dataset(digits(300, 30), per_class=2, classes=30).classes) == 30

    @pytest.mark.parametrize(
        ("classes", "message"),
        [
            ([1, 9], "no points of classes 9; it has 0, 1, 2, 3"),
            (5, "classes=5 were requested, but the dataset has 4"),
            ([2], "two classes or more"),
            (1, "two classes or more"),
            (0, "two classes or more"),
        ],
    )
    def test_classes_that_cannot_be_had(self, classes: Any, message: str) -> None:
        with pytest.raises(InputError, match=message):
            ProbeSet.from_dataset(digits(), classes=classes)

    def test_too_few_points(self) -> None:
        labels = torch.tensor([0] * 10 + [1] * 4 + [2] * 6)
        data = TensorDataset(torch.zeros(20, 1), labels)
        with pytest.raises(InputError, match=r"\{1: 4, 2: 6\}.*per_class=4.*allow_fewer"):
            ProbeSet.from_dataset(data, per_class=8)
        with pytest.warns(GeomonitorWarning, match="per_class is 4 for all classes, not 8"):
            probe = ProbeSet.from_dataset(data, per_class=8, allow_fewer=True)
        assert probe.per_class == 4
        assert probe.labels.bincount().tolist() == [4, 4, 4]

    @pytest.mark.parametrize(
        ("wrong", "message"),
        [({"per_class": 0}, "per_class is a whole number, 1 or more"), ({"seed": -1}, "seed is a whole number in")],
    )
    def test_numbers_out_of_range(self, wrong: Any, message: str) -> None:
        with pytest.raises(InputError, match=message):
            ProbeSet.from_dataset(digits(), **wrong)


class TestHeldOut:
    def test_points_of_the_training_set_are_refused(self) -> None:
        base = digits()
        with pytest.raises(InputError, match=r"8 of 8 probe points .*Subset\(dataset, held_out\)"):
            ProbeSet.from_dataset(base, per_class=2, train=base)
        with pytest.raises(InputError, match=r"2 of 8 probe points are in the training set \(indices 0, 1\)"):
            ProbeSet.from_dataset(Subset(base, range(192, 200)), per_class=2, train=Subset(base, range(194)))

    def test_the_rest_is_accepted(self) -> None:
        base = digits()
        train, held_out = torch.utils.data.random_split(base, [100, 100], torch.Generator().manual_seed(0))
        for given in (train, DataLoader(train), train.indices, torch.tensor(train.indices)):
            probe = ProbeSet.from_dataset(held_out, per_class=5, train=given)
            assert not set(whole(probe).inputs[:, 0].tolist()) & set(train.indices)


class TestFingerprint:
    def test_it_is_the_same_on_every_machine(self) -> None:
        """Saved in histories: a change of these values makes every saved history unreadable."""
        probe = ProbeSet.from_dataset(digits(), per_class=7)
        assert probe.fingerprint == "46466e2b44777499"
        assert probe.indices[:7].tolist() == [8, 36, 64, 124, 144, 156, 192]

    def test_it_changes_with_all_that_it_stands_for(self) -> None:
        base = digits()
        relabelled = TensorDataset(base.tensors[0], 3 - base.tensors[1])
        prints = [
            ProbeSet.from_dataset(base, per_class=7).fingerprint,
            ProbeSet.from_dataset(base, per_class=8).fingerprint,
            ProbeSet.from_dataset(base, per_class=7, seed=1).fingerprint,
            ProbeSet.from_dataset(base, per_class=7, classes=[0, 1]).fingerprint,
            ProbeSet.from_dataset(Subset(base, range(100)), per_class=7).fingerprint,
            ProbeSet.from_dataset(Subset(base, range(100, 200)), per_class=7).fingerprint,
            ProbeSet.from_dataset(relabelled, per_class=7).fingerprint,
        ]
        assert len(set(prints)) == len(prints)

    def test_a_copy_in_another_process_is_the_same_set(self) -> None:
        probe = ProbeSet.from_dataset(digits(), per_class=7)
        copied = pickle.loads(pickle.dumps(probe))
        assert copied.fingerprint == probe.fingerprint
        assert torch.equal(whole(copied).inputs, whole(probe).inputs)

    def test_it_is_shown(self) -> None:
        probe = ProbeSet.from_dataset(digits(), per_class=7)
        assert repr(probe) == (
            f"ProbeSet(4 classes x 7 points of TensorDataset, seed=0, fingerprint={probe.fingerprint})"
        )


class TestLoader:
    def test_inputs_labels_and_ids_belong_together(self) -> None:
        probe = ProbeSet.from_dataset(digits(), per_class=7)
        found = whole(probe, batch_size=10)
        assert torch.equal(found.inputs[:, 0], probe.indices[found.ids].float())
        assert torch.equal(found.labels, probe.labels[found.ids])
        assert torch.equal(found.ids.sort().values, torch.arange(28))
        assert [len(batch.ids) for batch in probe.loader(batch_size=10)] == [10, 9, 9]

    @pytest.mark.parametrize("world_size", [1, 2, 3, 5, 40])
    @pytest.mark.parametrize("batch_size", [1, 4, 100])
    def test_the_ranks_share_the_points_without_repeats(self, world_size: int, batch_size: int) -> None:
        probe = ProbeSet.from_dataset(digits(), per_class=7)
        ranks = [list(probe.loader(batch_size, rank=rank, world_size=world_size)) for rank in range(world_size)]
        assert all(len(batch.ids) for batches in ranks for batch in batches)
        parts = [[i for batch in batches for i in batch.ids.tolist()] for batches in ranks]
        assert sorted(i for part in parts for i in part) == list(range(28))
        assert max(map(len, parts)) - min(map(len, parts)) <= 1

    @pytest.mark.parametrize(("classes", "per_class"), [(4, 7), (5, 12)])
    @pytest.mark.parametrize("world_size", [1, 2, 3, 4])
    @pytest.mark.parametrize("batch_size", [4, 10, 100])
    def test_each_batch_holds_all_classes_in_equal_shares(self, classes, per_class, world_size, batch_size) -> None:
        probe = ProbeSet.from_dataset(digits(200, classes), per_class=per_class)
        for rank in range(world_size):
            once, twice = (list(probe.loader(batch_size, rank=rank, world_size=world_size)) for _ in range(2))
            assert [batch.ids.tolist() for batch in once] == [batch.ids.tolist() for batch in twice]
            for batch in once:
                of_class = batch.labels.bincount(minlength=classes)
                assert of_class.max() - of_class.min() <= 1

    @pytest.mark.parametrize("world_size", [1, 3, 40])
    @pytest.mark.parametrize("batch_size", [1, 4, 100])
    def test_in_lockstep_every_rank_has_the_same_number_of_batches(self, world_size: int, batch_size: int) -> None:
        probe = ProbeSet.from_dataset(digits(), per_class=7)
        ranks = [
            list(probe.loader(batch_size, rank=rank, world_size=world_size, lockstep=True))
            for rank in range(world_size)
        ]
        assert len({len(batches) for batches in ranks}) == 1
        every = [batch for batches in ranks for batch in batches]
        assert sorted(i for batch in every for i in batch.ids.tolist()) == list(range(28))
        assert all(len(batch.inputs) == max(len(batch.ids), 1) for batch in every)
        assert all(len(batch.labels) == len(batch.ids) for batch in every)

    def test_the_global_random_streams_do_not_move(self) -> None:
        probe = ProbeSet.from_dataset(digits(), per_class=7)
        before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
        whole(probe, batch_size=5)
        whole(ProbeSet.from_dataset(digits(), per_class=3, classes=2))
        assert random.getstate() == before[0]
        assert np.random.get_state()[1].tolist() == before[1]
        assert torch.equal(torch.get_rng_state(), before[2])

    def test_worker_processes_give_the_same(self) -> None:
        probe = ProbeSet.from_dataset(digits(), per_class=7)
        before = torch.get_rng_state()
        found = whole(probe, batch_size=10, num_workers=1)
        assert torch.equal(torch.get_rng_state(), before)
        assert torch.equal(found.inputs, whole(probe, batch_size=10).inputs)
        assert torch.equal(found.ids, whole(probe, batch_size=10).ids)

    def test_random_transforms_in_workers_repeat(self) -> None:
        with pytest.warns(GeomonitorWarning, match="other items each time"):
            probe = ProbeSet.from_dataset(Augmented(), per_class=3)
        assert torch.equal(whole(probe, num_workers=1).inputs, whole(probe, num_workers=1).inputs)

    @pytest.mark.parametrize("wrong", [{"batch_size": 0}, {"rank": 2, "world_size": 2}, {"rank": -1}])
    def test_numbers_out_of_range(self, wrong: Any) -> None:
        with pytest.raises(InputError, match="0 <= rank < world_size"):
            ProbeSet.from_dataset(digits(), per_class=7).loader(**wrong)

    def test_only_chosen_items_are_loaded(self) -> None:
        dataset = Fields()
        probe = ProbeSet.from_dataset(dataset, per_class=3)
        dataset.loaded.clear()
        list(probe.loader())
        assert sorted(dataset.loaded) == sorted(probe.indices.tolist())

    def test_memory_does_not_grow(self) -> None:
        probe = ProbeSet.from_dataset(digits(), per_class=7)
        sizes = []
        tracemalloc.start()
        try:
            for _ in range(3):
                for _ in range(100):
                    for _batch in probe.loader(batch_size=28):
                        pass
                sizes.append(tracemalloc.get_traced_memory()[0])
        finally:
            tracemalloc.stop()
        # Caches fill in the first hundred; afterwards less than 100 bytes an epoch may stay.
        assert sizes[2] - sizes[1] < 100 * 100


class Augmented(Dataset[Any]):
    targets = [0, 1] * 10

    def __len__(self) -> int:
        return 20

    def __getitem__(self, index: int) -> Any:
        return torch.rand(4), self.targets[index]


class Fields(Dataset[Any]):
    """Named fields, as language datasets have them."""

    def __init__(self) -> None:
        self.loaded = Loads()

    def __len__(self) -> int:
        return 20

    def __getitem__(self, index: int) -> Any:
        self.loaded.append(index)
        return {"input_ids": torch.tensor([index, 1]), "attention_mask": torch.ones(2), "label": index % 2}


class TestInputs:
    def test_named_fields_lose_the_label(self) -> None:
        (batch,) = ProbeSet.from_dataset(Fields(), per_class=3).loader()
        assert set(batch.inputs) == {"input_ids", "attention_mask"}
        assert batch.inputs["input_ids"].shape == (6, 2)

    def test_a_collate_function_may_rename_the_label(self) -> None:
        def renamed(items: list[dict[str, Any]]) -> dict[str, Tensor]:
            return {
                "input_ids": torch.stack([i["input_ids"] for i in items]),
                "labels": torch.zeros(len(items)),
            }

        (batch,) = ProbeSet.from_dataset(Fields(), per_class=3, collate_fn=renamed).loader()
        assert set(batch.inputs) == {"input_ids"}

    def test_pairs_of_inputs(self) -> None:
        x = torch.arange(20.0)
        data = TensorDataset(x, 10 * x, torch.arange(20) % 2)
        probe = ProbeSet.from_dataset(data, per_class=3, label_key=-1)
        (batch,) = probe.loader()
        assert isinstance(batch.inputs, tuple)
        assert torch.equal(batch.inputs[0], probe.indices[batch.ids].float())
        assert torch.equal(batch.inputs[1], 10.0 * probe.indices[batch.ids])

    def test_inputs_alone(self) -> None:
        class Alone(Augmented):
            def __getitem__(self, index: int) -> Any:
                return torch.tensor([float(index)])

        probe = ProbeSet.from_dataset(Alone(), per_class=3)
        (batch,) = probe.loader()
        assert torch.equal(batch.inputs[:, 0], probe.indices[batch.ids].float())


def test_choosing_from_a_million_items_is_quick_and_quiet() -> None:
    labels = torch.arange(1_000_000) % 1000
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        probe = ProbeSet.from_dataset(TensorDataset(torch.zeros(1_000_000, 1), labels), classes=20, per_class=50)
    assert len(probe) == 1000
