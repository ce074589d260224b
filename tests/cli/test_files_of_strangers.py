"""Every command answers damaged and hostile files in one line, in seconds, and prints no control characters."""

from __future__ import annotations

import contextlib
import io
import json
import pickle
import sys
import time
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from geomonitor import GeomonitorError, History, InputError
from geomonitor.cli import app
from geomonitor.decide.checkpoints import load_checkpoint, load_weights
from geomonitor.history.printable import printable
from geomonitor.report import MOST_ALARMS, MOST_CURVES, MOST_MARKERS, MOST_SETTINGS
from tests import scan_targets
from tests.fuzzing.clouds import PROFILE
from tests.runs_on_disk import write_run

HEADER = "step,epoch,layer,marker,value,standard_error,time,change_error\r\n"
COLUMNS = HEADER.strip().split(",")
CODES = {0, 1, app.WRONG_USAGE}
"""Exit codes of a command that has understood its files, or refused them."""
SECONDS = 10
SCAN = ["--model", "tests.scan_targets:model", "--probe", "tests.scan_targets:probe"]


class Answer(NamedTuple):
    code: int
    out: str
    err: str


def answer(*arguments: object) -> Answer:
    """Run a command as a user would, in this process."""
    out, err = io.StringIO(), io.StringIO()
    started = time.process_time()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = app.run([str(argument) for argument in arguments])
    assert time.process_time() - started < SECONDS
    return Answer(code, out.getvalue(), err.getvalue())


def require_clean(found: Answer, codes: set[int] = CODES) -> None:
    """A known exit code, at most one line of an error, and nothing that a terminal would obey."""
    assert found.code in codes, found
    assert all(character.isprintable() or character == "\n" for character in found.out + found.err)
    errors = [line for line in found.err.splitlines() if not line.startswith("warning: ")]
    assert len(errors) == (found.code == app.WRONG_USAGE), found.err
    assert all(line.startswith("error: ") for line in errors)
    assert len(found.err) < 3000


def commands(run: Path, other: Path) -> list[list[object]]:
    return [["report", run], ["replay", run], ["compare", other, run], ["compare", run, other, "--min", "dimension=1"]]


def changed(text: str, line: int, column: str, value: str) -> str:
    lines = text.split("\r\n")
    cells = lines[line].split(",")
    cells[COLUMNS.index(column)] = value
    lines[line] = ",".join(cells)
    return "\r\n".join(lines)


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("good") / "run", faulty=True)


class TestNumbers:
    @pytest.mark.parametrize(
        ("column", "value"),
        [
            ("step", "-1"), ("step", "nan"), ("step", "1" + "0" * 40), ("step", str(2**63)), ("step", "9" * 5000),
            ("step", "1.5"), ("epoch", "-3"), ("epoch", "1e3"), ("epoch", "9" * 30), ("value", ""), ("value", "1,5"),
            ("layer", "x" * 200_000), ("time", "today"), ("change_error", "0x1p3"),
        ],
    )  # fmt: skip
    def test_what_is_out_of_range_is_refused(self, good, tmp_path, column, value):
        text = (good / "geometry.csv").read_text(encoding="utf-8").replace("\n", "\r\n")
        (tmp_path / "geometry.csv").write_text(changed(text, 2, column, value), encoding="utf-8", newline="")
        for command in commands(tmp_path, good):
            found = answer(*command)
            require_clean(found, {app.WRONG_USAGE})
            assert "geometry.csv" in found.err

    @pytest.mark.parametrize("column", ["value", "standard_error", "time", "change_error"])
    @pytest.mark.parametrize("value", ["1e999", "-inf", "nan", "1.7e308", "-1.7e308", "5e-324", "-1", "0"])
    def test_what_is_a_number_is_shown(self, good, tmp_path, column, value):
        text = (good / "geometry.csv").read_text(encoding="utf-8").replace("\n", "\r\n")
        for line in range(1, text.count("\r\n"), 2):
            text = changed(text, line, column, value)
        (tmp_path / "geometry.csv").write_text(text, encoding="utf-8", newline="")
        for command in commands(tmp_path, good):
            require_clean(answer(*command), {0, 1})

    @pytest.mark.parametrize("values", [(1e-300, 1e300), (1e300, 1e-300)])
    def test_a_decomposition_that_overflows(self, tmp_path, values):
        rows = [
            f"{step},{step},fc,{marker},{value},,,\r\n".replace(",,,", ",nan,nan,nan")
            for step, value in enumerate(values)
            for marker in ("capacity", "utility", "radius", "dimension")
        ]
        (tmp_path / "geometry.csv").write_text(HEADER + "".join(rows), encoding="utf-8", newline="")
        require_clean(answer("report", tmp_path), {0})


NAMES = [
    "\x1b[31mred\x1b[0m\x1b]0;owned\x07",
    "\x9b2J",
    "\u202egnp.exe",
    "a\r\nerror: b",
    pytest.param("\0", marks=pytest.mark.skipif(sys.version_info < (3, 11), reason="csv of 3.10 writes no NUL")),
    "\x08\x08\x7f",
    "é\u2028ü",
    "[red]markup[/red]",
    "[/red]",
    "</script><script>alert(1)</script>",
    "{{ 7 * 7 }}",
    "m" * 100_000,
]


class TestNames:
    @pytest.mark.parametrize("name", NAMES, ids=range(len(NAMES)))
    def test_nothing_reaches_the_terminal_or_breaks_the_page(self, good, tmp_path, name):
        write_run(tmp_path, faulty=True, layer=name, protocol={name: name, "layers": {name: [name]}})
        history = History.load(tmp_path / "geometry.csv")
        history.append([record._replace(marker=name) for record in history if record.marker == "nc1"])
        history.open(tmp_path / "geometry.csv", {name: name})
        for command in [*commands(tmp_path, good), ["replay", tmp_path, "--watch", name, "--detector", "cusum"]]:
            require_clean(answer(*command), {0, 1})
        page = (tmp_path / "geometry.html").read_text(encoding="utf-8").split('<script type="application/json"')[0]
        assert all(character.isprintable() or character == "\n" for character in page)
        assert page.count("<script") == 0
        figures = set(json.loads(page_figures(tmp_path)))
        assert printable(name) in figures

    def test_a_lone_surrogate_in_the_side_file(self, good, tmp_path):
        write_run(tmp_path)
        (tmp_path / "geometry.json").write_text('{"protocol": {"a\\ud800": "\\udfff"}, "panel": null}')
        for command in commands(tmp_path, good):
            require_clean(answer(*command), {0, 1})

    @pytest.mark.parametrize("arguments", [["report", "no\x1b[31m"], ["markers", "--group", "\x9b2J"], ["\x1b[2J"]])
    def test_what_the_user_types_is_not_repeated_as_it_is(self, arguments):
        require_clean(answer(*arguments), {app.WRONG_USAGE})


def page_figures(run: Path) -> str:
    html = (run / "geometry.html").read_text(encoding="utf-8")
    return html.split('id="figures">')[1].split("</script>")[0]


class TestSideFiles:
    @pytest.mark.parametrize(
        "content",
        [
            b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
            b'{"a":' + b'{"b":' * 60 + b"1" + b"}" * 61,
            b"\xff\xfe\x00",
            b'{"a":' + b"9" * 6000 + b"}",
            b"[1]",
            b"",
            b"null",
            b'{"protocol": [], "panel": null, "a": ',
            b'{"protocol": {}, "panel": 3}',
        ],
        ids=range(9),
    )
    def test_what_is_no_protocol_is_refused(self, good, tmp_path, content):
        write_run(tmp_path)
        (tmp_path / "geometry.json").write_bytes(content)
        for command in commands(tmp_path, good):
            require_clean(answer(*command), {app.WRONG_USAGE})

    @pytest.mark.parametrize(
        "panel",
        [
            {}, {"watch": 3}, {"watch": [["a"]], "votes": "x", "detector": {}}, {"detector": {"name": ["drop"]}},
            {"watch": None, "votes": 1e400, "detector": {"name": "cusum", "sigmas": "a"}},
            {"watch": ["nothing"], "votes": None, "detector": {"name": "auto"}},
            {"watch": ["dimension"], "votes": 1, "detector": {"name": "custom"}},
        ],
        ids=range(7),
    )  # fmt: skip
    def test_a_panel_of_another_form(self, good, tmp_path, panel):
        write_run(tmp_path)
        (tmp_path / "geometry.json").write_text(json.dumps({"protocol": {}, "panel": panel}))
        for command in commands(tmp_path, good):
            require_clean(answer(*command))

    def test_a_directory_in_place_of_a_file(self, good, tmp_path):
        (tmp_path / "geometry.csv").mkdir()
        (tmp_path / "a" / "geometry.json").mkdir(parents=True)
        (tmp_path / "a" / "geometry.csv").write_bytes((good / "geometry.csv").read_bytes())
        for command in commands(tmp_path, good):
            require_clean(answer(*command))  # report and status go on with the run that can be read
        for command in commands(tmp_path / "geometry.csv", good):
            require_clean(answer(*command), {app.WRONG_USAGE})
        require_clean(answer("report", tmp_path / "a"), {0})


class TestManyOfThem:
    def test_3000_layers(self, tmp_path):
        rows = [f"{step},,layer{n},{marker},1.{n},0.1,1.0,0.1\r\n" for step in range(3) for n in range(3000)
                for marker in ("dimension", "capacity", "radius", "utility")]  # fmt: skip
        (tmp_path / "geometry.csv").write_text(HEADER + "".join(rows), encoding="utf-8", newline="")
        require_clean(answer("report", tmp_path), {0})
        assert f"Not shown: {3000 - MOST_CURVES} of 3000 layers" in (tmp_path / "geometry.html").read_text()
        require_clean(answer("replay", tmp_path), {0})

    def test_3000_markers_and_settings(self, tmp_path):
        rows = [f"{n},{n},fc,marker{n},1.0,0.1,1.0,0.1\r\n" for n in range(3000)]
        (tmp_path / "geometry.csv").write_text(HEADER + "".join(rows), encoding="utf-8", newline="")
        (tmp_path / "geometry.json").write_text(json.dumps({f"setting{n}": n for n in range(3000)}))
        require_clean(answer("report", tmp_path), {0})
        page = (tmp_path / "geometry.html").read_text()
        assert f"{3000 - MOST_MARKERS} of 3000 markers; {3000 - MOST_SETTINGS} of 3000 settings" in page
        require_clean(answer("compare", tmp_path, tmp_path), {0})

    def test_2000_alarms(self, tmp_path):
        rows = [f"{n},{n},fc,{marker},{value},0.1,1.0,0.1\r\n" for n in range(4000)
                for marker, value in (("dimension", 1.0), ("alarm", float(n % 2)))]  # fmt: skip
        (tmp_path / "geometry.csv").write_text(HEADER + "".join(rows), encoding="utf-8", newline="")
        require_clean(answer("report", tmp_path), {0})
        page = (tmp_path / "geometry.html").read_text()
        assert f"{2000 - MOST_ALARMS} of 2000 alarms" in page
        assert page.count('class="alarm"') == MOST_ALARMS
        assert "step 1)" in page  # the first and the last one are shown
        assert "step 3999)" in page
        shown = json.loads(page_figures(tmp_path))["dimension"]
        assert len(shown["data"][-1]["x"]) == 1000
        assert shown["data"][-1]["x"][-1] == 3999

    def test_2000_alarms_that_a_detector_finds(self, tmp_path):
        rows = [f"{n},{n},fc,dimension,{1.0 if n % 8 < 5 or n < 8 else 0.2},0.01,1.0,0.01\r\n" for n in range(4000)]
        (tmp_path / "geometry.csv").write_text(HEADER + "".join(rows), encoding="utf-8", newline="")
        for command in (["report", tmp_path], ["replay", tmp_path, "--watch", "dimension"]):
            require_clean(answer(*command), {0, 1})


class Evil:
    def __reduce__(self) -> Any:
        return print, ("this must not run",)


def checkpoints() -> dict[str, Any]:
    weights = scan_targets.model().state_dict()
    first = next(iter(weights))
    deep: list[Any] = []
    for _ in range(300):
        deep = [deep]
    tensor = weights[first]
    odd = {
        "text": "x",
        "complex": tensor * 1j,
        "integers": tensor.long(),
        "bits": tensor > 0,
        "sparse": tensor.to_sparse(),
        "another shape": torch.zeros(2, 2),
        "a huge view": torch.zeros(1).expand(10**9, 10**3),
        "on meta": tensor.to("meta"),
    }
    return {
        "a list": [1, 2], "a tensor": torch.zeros(3), "a number": 3, "nothing": {}, "no weights": {"state_dict": {}},
        "names that are numbers": {1: torch.zeros(3)}, "none": {"state_dict": {**weights, first: None}},
        "a part": {first: tensor}, "a pickle": {**weights, "x": Evil()}, "deep": {"a": deep},
        **{name: {**weights, first: value} for name, value in odd.items()},
    }  # fmt: skip


class TestCheckpoints:
    @pytest.mark.parametrize("kind", sorted(checkpoints()))
    def test_odd_weights(self, tmp_path, kind):
        torch.save(checkpoints()[kind], tmp_path / "step_1.pt")
        found = answer("scan", *SCAN, "--output", tmp_path / "out", tmp_path / "step_1.pt")
        require_clean(found._replace(err=without_bar(found.err)), {app.WRONG_USAGE})
        assert "must not run" not in found.out

    @pytest.mark.parametrize(
        "content",
        [
            b"",
            b"\0" * 100,
            b"PK\x03\x04" + b"x" * 50,
            pickle.dumps({"a": 1}),
            pickle.dumps(Evil()),
            b"\x80\x02}q\x00.",
            "zip",
        ],
        ids=range(7),
    )
    @pytest.mark.parametrize("ending", ["pt", "ckpt", "safetensors"])
    def test_no_checkpoint_at_all(self, tmp_path, content, ending):
        path = tmp_path / f"step_1.{ending}"
        if content == "zip":
            with zipfile.ZipFile(path, "w") as file:
                file.writestr("archive/data.pkl", b"\x80\x02]q\x00.")
        else:
            path.write_bytes(content)
        require_clean(answer("scan", *SCAN, "--output", tmp_path / "out", path), {app.WRONG_USAGE})

    def test_a_directory(self, tmp_path):
        require_clean(answer("scan", *SCAN, "--output", tmp_path / "out", tmp_path), {app.WRONG_USAGE})

    @pytest.mark.parametrize(
        ("step", "expected"),
        [(-5, None), (float("inf"), None), (float("nan"), None), (2**63, None), (torch.zeros(3), None), ("x", None),
         (7, 7), (torch.tensor(7), 7), (2**63 - 1, 2**63 - 1)],
    )  # fmt: skip
    def test_a_step_that_is_none(self, tmp_path, step, expected):
        path = tmp_path / "weights" / "a.pt"
        path.parent.mkdir()  # for the name of the directory of a test holds numbers
        torch.save({"state_dict": scan_targets.model().state_dict(), "global_step": step}, path)
        assert load_checkpoint(path).step == expected

    @pytest.mark.parametrize("name", [f"step_{'9' * 5000}"[:200], f"step_{2**63}"])
    def test_a_name_with_a_number_that_is_none(self, tmp_path, name):
        torch.save(scan_targets.model().state_dict(), tmp_path / f"{name}.pt")
        assert load_checkpoint(tmp_path / f"{name}.pt").step is None

    def test_half_precision_is_loaded(self, tmp_path):
        weights = {name: value.half() for name, value in scan_targets.model().state_dict().items()}
        torch.save(weights, tmp_path / "a.pt")
        load_weights(scan_targets.model(), load_checkpoint(tmp_path / "a.pt"))

    @pytest.mark.parametrize("change", [lambda w: w.long(), lambda w: w.to(torch.complex64)])
    def test_numbers_of_another_kind_are_refused(self, tmp_path, change):
        weights = scan_targets.model().state_dict()
        torch.save({**weights, "head.bias": change(weights["head.bias"])}, tmp_path / "a.pt")
        with pytest.raises(InputError, match=r"of another kind of numbers: head\.bias"):
            load_weights(scan_targets.model(), load_checkpoint(tmp_path / "a.pt"))


def without_bar(text: str) -> str:
    return "".join(line + "\n" for line in text.splitlines() if line.startswith(("error: ", "warning: ", "internal")))


class TestFaultsOfOurOwn:
    @pytest.mark.parametrize("error", [KeyError("\x1b[31m"), RecursionError(), AssertionError("a\nb"), UnicodeError()])
    def test_any_other_error_is_one_line(self, monkeypatch, tmp_path, error):
        def broken(path: object) -> None:
            raise error

        monkeypatch.setattr("geomonitor.cli.replay.load_run", broken)
        found = answer("replay", tmp_path)
        assert found.code == app.INTERNAL_ERROR
        assert found.err.startswith(f"internal error: {type(error).__name__} (test_files_of_strangers.py, line ")
        assert found.err.count("\n") == 1

    @pytest.mark.parametrize("error", [KeyboardInterrupt(), MemoryError(), OSError("a disk"), GeomonitorError("a")])
    def test_what_is_no_fault_has_a_code_of_its_own(self, monkeypatch, tmp_path, error):
        def broken(path: object) -> None:
            raise error

        monkeypatch.setattr("geomonitor.cli.report.loaded", broken)
        found = answer("report", tmp_path)
        assert found.code == (app.INTERRUPTED if isinstance(error, KeyboardInterrupt) else app.WRONG_USAGE)
        assert found.err.count("\n") == 1


@st.composite
def damaged(draw: st.DrawFn, content: bytes) -> bytes:
    """A file in which bytes are replaced, cut out, repeated or put in."""
    for _ in range(draw(st.integers(1, 4))):
        start, length = draw(st.integers(0, len(content))), draw(st.integers(0, 40))
        piece = draw(
            st.binary(max_size=12)
            | st.sampled_from(
                [b'"', b",", b"\r\n", b"1e999", b"-1", b"nan", b"\x1b[2J", b"9" * 400, b"[" * 2000, b"{}", b"null"]
            )
            | st.just(content[start : start + length] * 3)
        )
        content = content[:start] + piece + content[start + length :]
    return content


@settings(PROFILE, max_examples=min(PROFILE.max_examples, 150))  # a report takes a quarter of a second
@given(st.data())
def test_a_damaged_history_or_side_file(good, data):
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder)
        which = data.draw(st.sampled_from(["geometry.csv", "geometry.json"]))
        for name in ("geometry.csv", "geometry.json"):
            content = (good / name).read_bytes()
            (run / name).write_bytes(data.draw(damaged(content)) if name == which else content)
        for command in data.draw(st.sampled_from(commands(run, good))), ["replay", run]:
            require_clean(answer(*command))


@PROFILE
@given(st.data())
def test_a_damaged_checkpoint(data):
    import tempfile

    file = io.BytesIO()
    torch.save(scan_targets.model().state_dict(), file, _use_new_zipfile_serialization=data.draw(st.booleans()))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "step_1.pt")
        path.write_bytes(data.draw(damaged(file.getvalue())))
        with contextlib.suppress(GeomonitorError):  # no other error
            load_weights(scan_targets.model(), load_checkpoint(path))
