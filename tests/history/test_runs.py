"""Finding and reading a run; what is no run is told in one line."""

from __future__ import annotations

import math

import pytest

from geomonitor import InputError
from geomonitor.history.runs import load_run
from tests.runs_on_disk import PROTOCOL, write_run


def test_a_run_is_found_by_its_directory_its_file_or_from_above(tmp_path):
    write_run(tmp_path / "logs" / "version_0")
    for path in ("logs/version_0/geometry.csv", "logs/version_0", "logs"):
        run = load_run(tmp_path / path)
        assert (run.name, run.protocol) == ("version_0", PROTOCOL)
        assert (run.history.layers, run.history.markers("")) == (("penultimate",), ("seconds",))


def test_several_runs_are_listed(tmp_path):
    write_run(tmp_path / "a")
    write_run(tmp_path / "b")
    with pytest.raises(InputError, match=r"holds 2 runs; name one of them: .*a \(run \w+\), .*b \(run \w+\)"):
        load_run(tmp_path)


def test_a_file_without_the_columns_of_later_versions_is_read(tmp_path):
    run = write_run(tmp_path / "run")
    lines = (run / "geometry.csv").read_text(encoding="utf-8").splitlines()
    (run / "old.csv").write_text("".join(",".join(line.split(",")[:6]) + "\r\n" for line in lines), newline="")
    old, new = load_run(run / "old.csv").history, load_run(run).history
    assert [record[:5] for record in old] == [record[:5] for record in new]
    assert all(math.isnan(record.time) for record in old)
    (run / "short.csv").write_text("step,epoch,layer,marker\r\n1,0,fc,dimension\r\n", newline="")
    with pytest.raises(InputError, match="first line must be"):
        load_run(run / "short.csv")


def test_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        load_run(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"no geometry.csv"):
        load_run(tmp_path)
    (tmp_path / "bytes.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="no history file"):
        load_run(tmp_path / "bytes.csv")
    run = write_run(tmp_path / "run")
    (run / "geometry.json").write_text("{", encoding="utf-8")
    with pytest.raises(InputError, match="no JSON"):
        load_run(run)
    (run / "geometry.json").write_text("[1]", encoding="utf-8")
    with pytest.raises(InputError, match="JSON object"):
        load_run(run)
    header = (run / "geometry.csv").read_text(encoding="utf-8").splitlines()[0]
    (run / "geometry.csv").write_text(header + "\r\n", encoding="utf-8", newline="")
    with pytest.raises(InputError, match="no measurement yet"):
        load_run(run)


def test_a_frame_has_a_row_a_record(tmp_path):
    pytest.importorskip("pandas")
    history = load_run(write_run(tmp_path)).history
    frame = history.to_pandas()
    assert len(frame) == len(history)
    last = frame[(frame.marker == "dimension") & (frame.step == 480)].iloc[0]
    assert last.value == history.series("penultimate", "dimension").values[-1]
    assert (last.epoch, last.layer) == (19, "penultimate")
    assert math.isnan(frame[frame.marker == "seconds"].standard_error.iloc[0])
