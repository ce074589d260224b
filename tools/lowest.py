"""The lowest versions that pyproject.toml allows a user, as constraints for pip: constraints-lowest.txt.

python tools/lowest.py > constraints-lowest.txt
"""

from __future__ import annotations

import itertools
import re
import sys
from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PYPROJECT = Path(__file__).parents[1] / "pyproject.toml"
OF_DEVELOPERS = ("dev", "docs", "examples", "test-frameworks")
"""Extras that only a checkout uses: their tools are taken as they come."""
REQUIREMENT = re.compile(r"(?P<name>[A-Za-z0-9._-]+)(\[[^]]*\])?>=(?P<version>[0-9.]+)")


def lowest(pyproject: Path = PYPROJECT) -> str:
    """One line ``name==version`` for each dependency and each one of an extra that a user installs, by name.

    Raises:
        ValueError: A requirement that is not ``name>=version``, or two lower bounds for one name.
    """
    project = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]
    extras = {name: of for name, of in project["optional-dependencies"].items() if name not in OF_DEVELOPERS}
    bounds: dict[str, str] = {}
    for requirement in itertools.chain(project["dependencies"], *extras.values()):
        found = REQUIREMENT.fullmatch(requirement)
        if not found:
            raise ValueError(f"expected name>=version, found {requirement!r} in {pyproject}")
        name, version = found["name"], found["version"]
        if bounds.setdefault(name, version) != version:
            raise ValueError(f"{name} has two lower bounds in {pyproject}: {bounds[name]} and {version}")
    return "".join(f"{name}=={bounds[name]}\n" for name in sorted(bounds))


if __name__ == "__main__":
    sys.stdout.write("# Made by `python tools/lowest.py` from the lower bounds in pyproject.toml.\n" + lowest())
