"""The table of docs/fibers.md from benchmarks/fibers.json.

python benchmarks/fibers_page.py
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PAGE, NUMBERS = ROOT / "docs/fibers.md", ROOT / "benchmarks/fibers.json"
BEGIN, END = "<!-- begin: python benchmarks/fibers_page.py -->\n", "<!-- end -->"
AT = "at 0.002"
STRONG = 10.0
VARIANTS = {
    "prior alone": "the prior alone", "gradient 0.1": "plain gradient guidance, 0.1",
    "gradient 0.3": "plain gradient guidance, 0.3", "gradient 1": "plain gradient guidance, 1",
    "adam 10": "trajectory matching, Adam (the paper), 10",
    "normalised 10": "trajectory matching, normalised step (the default), 10",
    "normalised 10, per step": "the same, target of each step",
}  # fmt: skip


def tables(rows: dict[str, Any]) -> str:
    """Both tables, from what ``benchmarks/fibers.py`` has measured so far."""
    return f"{guidance(rows)}\n{changes(rows)}"


def guidance(rows: dict[str, Any]) -> str:
    """Variants of guidance on the network before; a range over seeds."""
    every = [row["baselines"] for row in rows.values()]
    real = {name: _range(each[name] for each in every) for name in ("random", "same class", "nearest real")}
    lines = [
        f"Before the fault, 48 members, {_seeds(rows)}. Losses of real points for comparison: a random one "
        f"{real['random']}, one of the same class {real['same class']}, the nearest one {real['nearest real']}.",
        "",
        "| guidance | relative loss | below the nearest real point | diversity | processor seconds |",
        "|---|---|---|---|---|",
    ]
    for name, title in VARIANTS.items():
        cells = [
            _range(each[name]["loss"] for each in every),
            _range((100 * each[name]["below the nearest real"] for each in every), " %"),
            _range(each[name]["diversity"] for each in every),
            _range(each[name]["processor seconds"] for each in every),
        ]
        lines.append(f"| {title} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def changes(rows: dict[str, Any]) -> str:
    """Before against after, a line for each run."""
    lines = [
        "Before against after:",
        "",
        "| seed, run | accuracy | diversity at loss 0.002: before | after | change | in errors | `fiber_forgotten` "
        "| loss at strength 10: before | after | below the nearest real point |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for seed, row in rows.items():
        for run in ("collapsed", "healthy"):
            found = row[run]
            change, error = found[AT]["change"]
            rungs = {side: found[side]["strengths"].index(STRONG) for side in ("before", "after")}
            losses = [_number(found[side]["losses"][rung]) for side, rung in rungs.items()]
            below = [f"{100 * found[side]['below the nearest real'][rung]:.0f} %" for side, rung in rungs.items()]
            cells = [
                f"{row['accuracy'][run]:.3f}", _pm(*found[AT]["before"]), _pm(*found[AT]["after"]), _pm(change, error),
                f"{change / error:.1f}", _number(found["markers"]["fiber_forgotten"][0]), *losses, ", ".join(below),
            ]  # fmt: skip
            lines.append(f"| {seed}, {run} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _seeds(rows: dict[str, Any]) -> str:
    return f"{'seed' if len(rows) == 1 else 'seeds'} {', '.join(rows)}"


def _range(values: Any, unit: str = "") -> str:
    found = sorted(values)
    ends = dict.fromkeys((_number(found[0]), _number(found[-1])))
    return "-".join(ends) + unit


def _number(value: float) -> str:
    """Two digits, without an exponent."""
    return f"{float(f'{value:.2g}'):.10f}".rstrip("0").rstrip(".")


def _pm(value: float, error: float) -> str:
    return f"{value:.3f} ± {error:.3f}"


def with_tables(page: str, rows: dict[str, Any]) -> str:
    """The page with the tables of these numbers between the two marks."""
    return re.sub(f"(?s){re.escape(BEGIN)}.*{re.escape(END)}", lambda _: f"{BEGIN}{tables(rows)}{END}", page)


if __name__ == "__main__":
    PAGE.write_text(with_tables(PAGE.read_text(encoding="utf-8"), json.loads(NUMBERS.read_text())), encoding="utf-8")
