"""What runs amount to: figures per run, means over seeds, scores against bounds, and how they are shown.

``rows`` counts, ``scores`` compares, ``series`` keeps what charts need, ``timeline`` watches one run; ``tables``,
``document`` and ``page`` are the three ways out: for people, for programs, for a browser.
"""

from bellmare.sim.report.rows import RunRow, row

__all__ = ["RunRow", "row"]
