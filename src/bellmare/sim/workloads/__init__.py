"""Where arrivals come from: importers of published traces, and generators with the statistics of policy.md 2.

The files themselves are never part of the project; a generator repeats facts about them, not their contents.
"""
