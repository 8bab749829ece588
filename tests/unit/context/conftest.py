"""Small vocabularies are shared by several suites."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))  # tests/engine_vocabularies.py
