"""Rules of what is left out of a conversation, for any conversation."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from bellmare.core.context import Item, Role, Room, cut, room

TOKENS = st.integers(0, 400)
ROOMS = st.builds(
    lambda num_ctx, at, output: room(num_ctx, at_percent=at, output=output),
    st.integers(4, 5_000),
    st.integers(1, 100),
    st.integers(-1, 10_000),
)


@st.composite
def turns(draw: st.DrawFn) -> list[Item]:
    """A question, and what an agent does about it: calls with results, answers."""
    found = [Item(Role.user, draw(TOKENS))]
    for _ in range(draw(st.integers(0, 3))):
        found.append(Item(Role.answer, draw(TOKENS)))
        found += [Item(Role.tool, draw(TOKENS)) for _ in range(draw(st.integers(0, 2)))]
    if draw(st.integers(0, 9)) == 0:
        found.append(Item(Role.system, draw(TOKENS)))
    return found


CHATS = st.builds(
    lambda system, chat: [*system, *(item for turn in chat for item in turn)],
    st.lists(st.builds(Item, st.just(Role.system), TOKENS), max_size=1),
    st.lists(turns(), min_size=1, max_size=12),
)
ANY = st.lists(st.builds(Item, st.sampled_from(Role), TOKENS), max_size=30)


def left(items: list[Item], dropped: tuple[int, ...]) -> list[tuple[int, Item]]:
    gone = set(dropped)
    return [(index, item) for index, item in enumerate(items) if index not in gone]


@given(ANY, st.integers(0, 500), ROOMS)
def test_what_is_left_is_counted_right_and_fits_or_is_said_not_to(items, fixed, space):
    found = cut(items, fixed=fixed, room=space)
    assert found.tokens == fixed + sum(item.tokens for _, item in left(items, found.dropped))
    assert found.fits == (found.tokens <= space.most)
    assert list(found.dropped) == sorted(set(found.dropped))


@given(ANY, st.integers(0, 500), ROOMS)
def test_nothing_is_dropped_from_what_fits(items, fixed, space):
    found = cut(items, fixed=fixed, room=space)
    if fixed + sum(item.tokens for item in items) <= space.wanted:
        assert found.dropped == ()


@given(ANY, st.integers(0, 500), ROOMS)
def test_system_messages_the_last_question_and_the_last_message_stay(items, fixed, space):
    found = cut(items, fixed=fixed, room=space)
    for index in found.dropped:
        assert items[index].role is not Role.system
        assert index != max((i for i, item in enumerate(items) if item.role is Role.user), default=-1)
    spoken = [index for index, item in enumerate(items) if item.role is not Role.system]
    if spoken:
        assert spoken[-1] not in found.dropped


@given(CHATS, st.integers(0, 500), ROOMS)
def test_no_result_is_left_without_its_call_and_no_call_without_its_results(items, fixed, space):
    gone = set(cut(items, fixed=fixed, room=space).dropped)
    call = -1
    for index, item in enumerate(items):
        if item.role in (Role.user, Role.answer):
            call = index
        elif item.role is Role.tool and items[call].role is Role.answer:
            assert (index in gone) == (call in gone)


@given(CHATS, st.integers(0, 500), ROOMS)
def test_what_is_left_begins_with_a_question(items, fixed, space):
    found = cut(items, fixed=fixed, room=space)
    spoken = [item for _, item in left(items, found.dropped) if item.role is not Role.system]
    assert spoken[0].role is Role.user


@given(CHATS, st.integers(0, 500), ROOMS)
def test_a_cut_conversation_is_not_cut_again(items, fixed, space):
    found = cut(items, fixed=fixed, room=space)
    rest = [item for _, item in left(items, found.dropped)]
    assert cut(rest, fixed=fixed, room=space).dropped == ()


@given(CHATS, turns(), st.integers(0, 500), ROOMS)
def test_a_message_once_left_out_stays_out_as_the_conversation_goes_on(items, more, fixed, space):
    more = [item for item in more if item.role is not Role.system]
    before = set(cut(items, fixed=fixed, room=space).dropped)
    for length in range(1, len(more) + 1):
        now = set(cut([*items, *more[:length]], fixed=fixed, room=space).dropped)
        assert before <= now
        before = now


@given(CHATS, st.integers(0, 500), ROOMS)
def test_it_is_cut_down_to_what_is_wanted_if_that_can_be(items, fixed, space):
    """Else everything is gone that may go."""
    found = cut(items, fixed=fixed, room=space)
    if found.tokens > space.wanted:
        rest = [item for _, item in left(items, found.dropped)]
        question = max(index for index, item in enumerate(rest) if item.role is Role.user)
        assert all(item.role is Role.system for item in rest[:question])
        assert sum(item.role is Role.answer for item in rest[question:]) <= 1


def test_turn_after_turn_is_cut_at_the_same_place_until_much_is_new():
    space = room(4_096, at_percent=80, output=0)
    chat = [Item(Role.system, 60)]
    places = []
    for _ in range(120):
        chat += [Item(Role.user, 40), Item(Role.answer, 160)]
        found = cut([*chat, Item(Role.user, 40)], fixed=20, room=space)
        assert found.tokens <= space.wanted
        places.append(len(found.dropped))
    moves = [now for before, now in itertools.pairwise(places) if now != before]
    assert places[:15] == [0] * 15
    assert 100 * 200 / 1_300 * 0.7 < len(moves) < 100 * 200 / 1_300 * 1.3, moves
    assert min(after - before for before, after in itertools.pairwise(moves)) >= 12


def test_the_reserve_is_what_the_client_wants_but_never_more_than_half():
    assert room(4_096, at_percent=80, output=0) == Room(3_276, 4_095)
    assert room(4_096, at_percent=80, output=-1) == Room(3_276, 4_095)
    assert room(4_096, at_percent=80, output=96) == Room(4_000, 4_095)
    assert room(4_096, at_percent=80, output=128_000) == Room(2_048, 4_095)
    assert room(4_096, at_percent=100, output=0) == Room(4_095, 4_095)


def test_the_oldest_results_of_a_long_last_turn_go_with_their_calls():
    items = [Item(Role.user, 100)] + [Item(role, 100) for _ in range(10) for role in (Role.answer, Role.tool)]
    found = cut(items, fixed=0, room=Room(1_000, 1_200))
    assert found.dropped == tuple(range(1, len(found.dropped) + 1))
    assert len(found.dropped) % 2 == 0
    assert found.tokens <= 1_000
