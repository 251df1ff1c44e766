"""Where the tests find things."""

import os
from pathlib import Path

TESTS = Path(__file__).parents[1]
ROOT = TESTS.parent
GOLDEN = TESTS / "golden"
PROGRAMS = TESTS / "programs"
CONFIGS = ROOT / "configs"
# For programs that tests start.
PYTHONPATH = os.pathsep.join([str(TESTS), str(ROOT)])
