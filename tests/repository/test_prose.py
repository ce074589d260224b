"""The prose linter finds what it should, in every kind of place, and leaves code alone."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

PROSE = runpy.run_path(str(Path(__file__).parents[2] / "tools/prose.py"))
findings, prose, RULES = PROSE["findings"], PROSE["prose"], PROSE["RULES"]
EXAMPLES = (
    "It falls, too.",
    "The user is told once.",
    "The message says so.",
    "Worse transfer goes with it.",
    "Nobody looks at it.",
    "What was wanted.",
    "NaN where it is undefined.",
    "The bound is that of what is given.",
    "The error is that of the mean.",
    "At every occasion.",
    "The last reading is NaN.",
    "The moment of the fall.",
    "A detector that cries wolf.",
    "Markers in decline.",
    "The first episode.",
    "Three kinds of markers.",
    "Measured so many times.",
    "It is warned of once.",
    "An error for each sample.",
)


def found_in(path: Path) -> list[tuple[int, str]]:
    return [(first + line, words) for first, text in prose(path) for line, words, _ in findings(text)]


def test_every_rule_finds_its_example():
    assert len(EXAMPLES) == len(RULES)
    for (pattern, _), text in zip(RULES, EXAMPLES, strict=True):
        assert any(True for _ in PROSE["re"].finditer(pattern, text, flags=PROSE["re"].IGNORECASE)), (pattern, text)


@pytest.mark.parametrize(
    "text",
    [
        "too many points", "the two clouds are told apart by a readout", "`where the mask is`", "the second moment",
        "P, where P > 1", "kindly", "Validation accuracy ends where it was.", "see https://host/that-is-told",
        "```\nmarkers told\n```", "Args:\n    tell: takes a message.", "one sample size", "where to start reading",
    ],
)  # fmt: skip
def test_other_words_are_left_alone(text):
    assert list(findings(text)) == []


def test_a_phrase_is_found_over_a_line_break_with_its_line():
    (found,) = findings("one\nworse transfer goes\nwith it")
    assert found[:2] == (1, "goes with")


def test_of_python_comments_and_strings_are_read(tmp_path):
    file = tmp_path / "module.py"
    file.write_text(
        '"""Doc.\n\nIt is told.\n"""\ntold = 1  # it goes\n\n# it goes\n# with it\n'
        'x = f"{told} is wanted"\ny = "told"\n'
    )
    assert sorted(found_in(file)) == [(3, "told"), (7, "goes with"), (9, "wanted")]


def test_the_documents_and_the_folders_that_are_clean_have_no_finding(capsys):
    assert PROSE["main"](()) == 0, capsys.readouterr().out
