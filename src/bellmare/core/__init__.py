"""The decision core: events in, decisions out. No I/O, clock, randomness or asyncio.

Time is an argument of :meth:`engine.Engine.step` and the next timer is a return value of ``next_deadline_us``; the same
object is driven by the live shell (``runtime``) and, replaying a log, by ``bellmare replay``.
"""
