"""``geomonitor fibers`` as a user calls it: files, default checkpoints, budget, bad input."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from geomonitor.cli.app import run
from geomonitor.history.saved import SavedCheckpoint
from tests import fiber_targets
from tests.runs_on_disk import FAULT, STEPS, write_run

NAMED = [
    *("--model", "tests.fiber_targets:model", "--probe", "tests.fiber_targets:probe"),
    *("--prior", "tests.fiber_targets:prior"),
]
FEW = ["--per-class", "2", "--samples", "3", "--steps", "12"]


@pytest.fixture
def folder(tmp_path):
    """A run with an alarm, and checkpoints before and after the decline."""
    write_run(tmp_path, faulty=True, layer="penultimate")
    for measurement in (5, FAULT - 2, FAULT, FAULT + 1, FAULT + 4):
        network = fiber_targets.model() if measurement < FAULT else fiber_targets.blind()
        torch.save(network.state_dict(), tmp_path / f"step_{STEPS * (measurement + 1)}.pt")
    return tmp_path


def checkpoint(folder, measurement):
    return str(folder / f"step_{STEPS * (measurement + 1)}.pt")


def settings(folder):
    return json.loads((folder / "fibers.json").read_text())["settings"]


def test_the_checkpoints_around_the_alarm_are_compared(folder, capsys):
    assert run(["fibers", str(folder), *NAMED, *FEW]) == 0
    printed = capsys.readouterr()
    assert printed.out.strip().splitlines()[-1].startswith("At the same features")
    assert "blind to more" in printed.out
    assert settings(folder)["before"] == checkpoint(folder, FAULT - 2)
    assert settings(folder)["after"] == checkpoint(folder, FAULT + 1)
    assert settings(folder)["layer"] == "penultimate"
    found = json.loads((folder / "fibers.json").read_text())
    change = found["markers"]["fiber_diversity_change"]
    assert change["value"] > 2 * change["standard_error"]
    assert np.shape(found["before"]["losses"]) == (4, 4, 3)
    assert set(found["versions"]) == {"geomonitor", "torch", "python"}
    images = np.load(folder / "fibers.npz")
    assert {name: images[name].shape for name in images} == {
        "representatives": (4, 1, 6, 6), "before": (4, 3, 1, 6, 6), "after": (4, 3, 1, 6, 6),
        "nearest_before": (4, 1, 6, 6), "nearest_after": (4, 1, 6, 6),
    }  # fmt: skip
    assert images["representatives"].dtype == np.uint8
    assert images["representatives"].max() == 255
    assert (folder / "fibers.png").read_bytes().startswith(b"\x89PNG")


def test_the_checkpoint_that_the_run_kept_is_the_one_before(folder):
    side = folder / "geometry.json"
    kept = SavedCheckpoint(checkpoint(folder, 5), STEPS * 6, 5)
    found = json.loads(side.read_text())
    side.write_text(json.dumps({"protocol": found.get("protocol", found), "last_healthy": kept._asdict()}))
    assert run(["fibers", str(folder), *NAMED, *FEW]) == 0
    assert settings(folder)["before"] == checkpoint(folder, 5)


def test_the_same_checkpoint_twice_is_no_change_and_equal_calls_give_equal_numbers(folder, capsys):
    same = ["--before", checkpoint(folder, 5), "--after", checkpoint(folder, 5), "--layer", "body"]
    texts = []
    for _ in range(2):
        assert run(["fibers", str(folder), *NAMED, *FEW, *same]) == 0
        texts.append((folder / "fibers.json").read_text())
    assert texts[0] == texts[1]
    assert "no change beyond the error" in capsys.readouterr().out


def test_a_small_budget_leaves_members_out_and_the_note_names_it(folder, capsys):
    both = ["--before", checkpoint(folder, 5), "--after", checkpoint(folder, FAULT)]
    budget = (4096 + 4 * 36 * (3 + 2 * 2)) / 2**20
    assert run(["fibers", str(folder), *NAMED, *FEW, *both, "--max-mib", str(budget)]) == 0
    assert np.load(folder / "fibers.npz")["after"].shape == (4, 2, 1, 6, 6)
    assert (folder / "fibers.npz").stat().st_size <= budget * 2**20
    assert "2 of 3 members of 4 of 4 fibers" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"--prior": "tests.fiber_targets:NUMBER"}, "must be or return a FlowPrior"),
        ({"--prior": "tests.fiber_targets:small_prior"}, "prior's shape (1, 4, 4)"),
        ({"--prior": "tests.fiber_targets:flat_prior"}, "needs images"),
        ({"--probe": "tests.fiber_targets:rows"}, "prior's shape (1, 6, 6)"),
        ({"--model": "tests.fiber_targets:other"}, "does not fit the model"),
        ({"--before": "gone.pt"}, "no checkpoint file"),
        ({"--layer": "tail"}, "tail"),
        ({"--per-class": "21"}, "--per-class must be 1 to 20"),
        ({"--samples": "1"}, "per_input"),
        ({"--steps": "0"}, "steps"),
        ({"--max-mib": "0.001"}, "max_mib"),
        ({"--max-mib": "-1"}, "max_mib"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line(folder, capsys, change, words):
    given = {
        **dict(zip(NAMED[::2], NAMED[1::2], strict=True)), **dict(zip(FEW[::2], FEW[1::2], strict=True)),
        "--before": checkpoint(folder, 5), "--after": checkpoint(folder, FAULT), "--steps": "3",
    } | change  # fmt: skip
    assert run(["fibers", str(folder), *(part for pair in given.items() for part in pair)]) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert words in last
    assert not list(folder.glob("fibers.*"))


def test_a_run_without_an_alarm_needs_both_checkpoints(tmp_path, capsys):
    write_run(tmp_path)
    assert run(["fibers", str(tmp_path), *NAMED]) == 2
    assert "recorded no alarm" in capsys.readouterr().err


def test_no_checkpoint_from_before_the_decline(folder, capsys):
    for measurement in (5, FAULT - 2):
        (folder / f"step_{STEPS * (measurement + 1)}.pt").unlink()
    (folder / "notes.pt").write_bytes(b"no checkpoint")
    assert run(["fibers", str(folder), *NAMED]) == 2
    assert "name one by --before" in capsys.readouterr().err


def test_features_that_are_not_finite_are_one_line(folder, capsys):
    weights = fiber_targets.model().state_dict()
    weights["body.weight"].fill_(torch.inf)
    torch.save(weights, folder / "broken.pt")
    both = ["--before", checkpoint(folder, 5), "--after", str(folder / "broken.pt")]
    assert run(["fibers", str(folder), *NAMED, *FEW, *both]) == 2
    assert "not finite" in capsys.readouterr().err
