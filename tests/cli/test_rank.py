"""``geomonitor rank`` as a user calls it: exit codes, formats, targets, checkpoints, several processes."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from geomonitor.cli.app import run
from tests import scan_targets

ROOT = Path(__file__).parents[2]
PROBE = ["--probe", "tests.scan_targets:probe"]


def models(*names: str) -> list[str]:
    return [part for name in names for part in ("--model", f"tests.scan_targets:{name}")]


@pytest.mark.parametrize(
    ("names", "more", "code"),
    [(("poor", "rich"), [], 0), (("rich", "rich_again"), [], 1), (("rich", "poor", "other"), [], 3),
     (("poor", "rich"), ["--target", "tests.scan_targets:new_classes"], 0),
     (("poor", "rich", "other"), ["--target", "tests.scan_targets:new_class_points"], None)],
)  # fmt: skip
def test_exit_codes(capsys, names, more, code):
    found = run(["rank", *models(*names), *PROBE, *more])
    printed = capsys.readouterr()
    assert found in ((0, 1) if code is None else (code,))
    assert "tests.scan_targets:rich" in printed.out.replace("\n", "")
    assert ("92 of 126" in printed.out) is not bool(more)
    assert ("Give --target" in printed.err) is (code == 3)


@pytest.mark.parametrize("form", ["json", "csv"])
def test_formats(capsys, form):
    assert run(["rank", *models("poor", "rich"), *PROBE, "--format", form]) == 0
    text = capsys.readouterr().out
    if form == "json":
        rows = json.loads(text)["models"]
        assert "92 of 126" in json.loads(text)["rule"]
        assert rows[0]["called"] is True
    else:
        rows = list(csv.DictReader(io.StringIO(text)))
        assert rows[0]["called"] == "True"
    assert [row["model"] for row in rows] == ["tests.scan_targets:rich", "tests.scan_targets:poor"]
    assert float(rows[0]["dimension"]) > float(rows[1]["dimension"])
    assert float(rows[1]["below_first"]) > 2 * float(rows[1]["below_first_error"]) > 0


@pytest.mark.parametrize("ending", ["pt", "safetensors", "ckpt"])
def test_checkpoints_of_one_step_are_all_ranked(tmp_path, capsys, ending):
    paths = []
    for name in ("poor", "rich", "other"):
        weights, path = getattr(scan_targets, name)().state_dict(), tmp_path / f"{name}.{ending}"
        if ending == "safetensors":
            pytest.importorskip("safetensors.torch").save_file(weights, path)
        else:
            torch.save({"global_step": 100, "state_dict": weights} if ending == "ckpt" else weights, path)
        paths.append(str(path))
    assert run(["rank", *paths[:2], *models("model"), *PROBE, "--format", "csv"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 3
    assert run(["rank", *paths, *models("model", "other"), *PROBE, "--format", "csv"]) == 3
    assert len(capsys.readouterr().out.splitlines()) == 4
    assert run(["rank", *paths, *models("model"), *PROBE]) == 2
    assert "does not fit the model" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "found"),
    [([*models("rich"), *PROBE], "nothing to compare"),
     ([*models("rich", "poor"), *PROBE, "--target", "tests.scan_targets:NUMBER"], "must be or return a TransferProbe"),
     ([*models("rich", "broken"), *PROBE], "ZeroDivisionError"),
     ([*models("rich", "poor"), "--probe", "tests.scan_targets:nothing"], "has no 'nothing'"),
     (["gone.pt", "gone2.pt", *models("rich"), *PROBE], "no checkpoint file")],
)  # fmt: skip
def test_what_cannot_be_ranked_is_one_line(capsys, arguments, found):
    assert run(["rank", *arguments]) == 2
    error = capsys.readouterr().err
    assert found in error
    assert error.splitlines()[-1].startswith("error: ")
    assert error.count("error") <= 2  # one line, below the bar


def test_the_user_may_state_that_all_are_of_one_architecture(capsys):
    code = run(["rank", *models("rich", "other"), *PROBE, "--same-architecture"])
    assert code in (0, 1)
    assert "Give --target" not in capsys.readouterr().err


def test_two_processes_print_what_one_prints(capsys):
    arguments = ["rank", *models("poor", "rich", "rich_again"), *PROBE, "--format", "json"]
    paths = os.pathsep.join([str(ROOT), str(ROOT / "integrations")])
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    both = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"),
            *("-m", "geomonitor.cli", *arguments),
        ],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert both.returncode == run(arguments), both.stderr
    assert json.loads(both.stdout) == json.loads(capsys.readouterr().out)
