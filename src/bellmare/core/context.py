"""Which messages of a conversation are left out so that the rest fits into a context. Pure arithmetic over counts.

Oldest first, in whole turns, in big steps: the cut depends on the messages alone and stays where it is for many turns,
so that a worker goes on with its prefix cache. What is never left out: system messages, the last turn's question, the
last message, and a tool's result without its call or the other way round.
"""

from collections.abc import Sequence
from enum import StrEnum

import msgspec

STEP_PERCENT = 40
"""Of the room for messages: how much more than needed is left out at most. The next cut comes when as much is new."""
RESERVE_PERCENT_MAX = 50
"""Of the context, for the output: many clients ask for as many tokens as the context has."""


class Role(StrEnum):
    """What a message is to the cut; any other is as an answer."""

    system = "system"
    user = "user"
    answer = "answer"
    tool = "tool"


class Item(msgspec.Struct, frozen=True):
    """One message."""

    role: Role
    tokens: int


class Room(msgspec.Struct, frozen=True):
    """How many tokens a prompt may have."""

    wanted: int
    """It is cut down to this, with room for the output."""
    most: int
    """More than this does not fit at all."""


class Cut(msgspec.Struct, frozen=True):
    """``dropped`` are positions, ascending. ``fits``: what is left has at most ``Room.most`` tokens."""

    dropped: tuple[int, ...]
    tokens: int
    fits: bool


def room(num_ctx: int, *, at_percent: int, output: int) -> Room:
    """``output``: tokens that the client wants at most; not positive if it does not say."""
    assert num_ctx > 0 and 0 < at_percent <= 100
    most = max(1, num_ctx - 1)  # an engine wants room for one token of output
    wanted = num_ctx - min(output, num_ctx * RESERVE_PERCENT_MAX // 100) if output > 0 else num_ctx * at_percent // 100
    return Room(max(1, min(wanted, most)), most)


def cut(items: Sequence[Item], *, fixed: int, room: Room) -> Cut:
    """What to leave out of ``items`` in front of which, and behind, ``fixed`` tokens stand in any case."""
    total = fixed + sum(item.tokens for item in items)
    excess = total - room.wanted
    if excess <= 0:
        return Cut((), total, fits=True)
    units = _units(items)
    sizes = [sum(items[position].tokens for position in unit) for unit in units]
    always = fixed + sum(item.tokens for item in items if item.role is Role.system)
    step = max(1, (room.wanted - always) * STEP_PERCENT // 100)  # of nothing that changes from turn to turn
    aim = -(-excess // step) * step
    if aim > sum(sizes):
        aim = excess
    gone = count = 0
    for size in sizes:
        if gone >= aim:
            break
        gone += size
        count += 1
    dropped = sorted(position for unit in units[:count] for position in unit)
    return Cut(tuple(dropped), total - gone, fits=total - gone <= room.most)


def _units(items: Sequence[Item]) -> list[list[int]]:
    """What may be left out, in the order in which it is: each only as a whole, and only after those before it."""
    last_user = max((index for index, item in enumerate(items) if item.role is Role.user), default=-1)
    units: list[list[int]] = []
    for index, item in enumerate(items):
        if item.role is Role.system or index == last_user:
            continue
        if index < last_user:
            begins = not units or item.role is Role.user
        else:
            begins = not units or units[-1][0] < last_user or item.role is not Role.tool
        if begins:
            units.append([])
        units[-1].append(index)
    if units and units[-1][-1] > last_user:
        del units[-1]  # what is to be answered, or gone on with
    return units
