"""What holds for every test run: the tools can be imported, and notebooks are compared with a tolerance."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "tools"))
pytest_plugins = ["nbval_fingerprint"]
