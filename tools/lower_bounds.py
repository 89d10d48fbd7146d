"""Say which packages are not at the lower bound that pyproject.toml declares for them.

    python tools/lower_bounds.py

It runs in the environment of `make versions` with the lowest versions: a bound that cannot be installed beside the
others, because another package asks for more, is one that no test ever ran with. Raise it to what was installed.
"""

import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import Version

PROJECT = Path(__file__).parents[1] / "pyproject.toml"


def main() -> int:
    project = tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    above = 0
    for requirement in map(Requirement, [*project["dependencies"], *extras["lab"], *extras["test"]]):
        (bound,) = (one.version for one in requirement.specifier if one.operator == ">=")
        if Version(version(requirement.name)) != Version(bound):
            print(f"{requirement} is declared, but {version(requirement.name)} is installed.")
            above += 1
    return int(above > 0)


if __name__ == "__main__":
    sys.exit(main())
