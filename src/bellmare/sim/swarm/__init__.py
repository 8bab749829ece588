"""Deterministic simulation testing: a seed draws a fleet, its limits, clients and faults; an oracle judges each answer.

``world`` (over ``machines`` over ``stage``) is a fleet that knows nothing of the core; ``oracle`` (over ``ledger``)
keeps its own books and never calls the code under test; ``healing`` demands a good end. ``draws`` and ``life`` turn a
seed into a run, ``marks`` says what must have been met, ``campaign`` and ``__main__`` run many seeds.
"""
