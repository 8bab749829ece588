"""What passes the gate as one JSON object; reliability.md F6 and faults C1 to C5."""

import json
import time

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bellmare.protocols.errors import InvalidRequest
from bellmare.protocols.jsonbody import (
    COMMAS_MAX,
    DEPTH_MAX,
    FIELDS_MAX,
    LISTS_MAX,
    OBJECTS_MAX,
    QUICK_BYTES_MAX,
    SIZES_MAX,
    Gate,
    check_depth,
    check_object,
    decode_as,
)

KNOWN = frozenset({"model", "keep_alive", "stream", "messages", "_debug_render_only"})


def refusal(body: bytes, known: frozenset[str] = KNOWN) -> str:
    with pytest.raises(InvalidRequest) as caught:
        check_object(body, known=known)
    assert caught.value.status == 400
    return caught.value.message


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "missing request body"),
        (b" \n", "missing request body"),
        (b"null", "invalid request: the body must be a JSON object"),
        (b"[]", "invalid request: the body must be a JSON object"),
        (b'"x:y"', "invalid request"),
        (b"7", "invalid request: the body must be a JSON object"),
        (b'{"model":"a"} x', "invalid JSON: something follows the object"),
        (b'{"model":"a"}{"model":"b"}', "invalid JSON: something follows the object"),
        (b'{"model":', "invalid JSON: unexpected end"),
        (b'{"model":"a",}', "invalid JSON: trailing comma"),
        (b'{"model":NaN}', "invalid JSON: invalid character"),
        (b'{"model":Infinity}', "invalid JSON: invalid character"),
        (b'{"model":"\\ud800"}', "unpaired surrogate"),
        (b'{"model":"\xff"}', "invalid JSON: not valid UTF-8"),
        (b'{"x":"\xc0\x80"}', "invalid JSON: not valid UTF-8"),
        (b"\xef\xbb\xbf{}", "invalid JSON: invalid character"),
        ('{"model":"a"}'.encode("utf-16"), "invalid JSON: not valid UTF-8"),
        (b'{"model":"a","model":"b"}', 'duplicate field "model"'),
        (b'{"x":1,"x":1}', 'duplicate field "x"'),
        (b'{"x":{"a":[1,":"]},"x":1}', 'duplicate field "x"'),
        (b'{"mod\\u0065l":"a","model":"b"}', 'duplicate field "model"'),
        (b'{"model":"a","model":"b","x\\u003a":1}', "escaped colon"),
        (b'{"model":"a","model":"b","x\\u003A":1}', "escaped colon"),
        (b'{"Model":"a"}', 'field "Model" must be written "model"'),
        (b'{"model":"allowed","MODEL":"secret"}', 'field "MODEL" must be written "model"'),
        ('{"\u212aeep_alive":0}'.encode(), 'must be written "keep_alive"'),
        (b'{"\\u212aeep_alive":0}', 'must be written "keep_alive"'),
        ('{"me\u017f\u017fages":[]}'.encode(), 'must be written "messages"'),
        ('{"\u017ftream":true}'.encode(), 'must be written "stream"'),
        (b'{"foo":1,"FOO":2}', 'fields "foo" and "FOO" differ only in case'),
    ],
)
def test_refusals_say_what_is_wrong(body, message):
    assert message in refusal(body)


def test_a_key_in_a_message_is_bounded_and_printable():
    message = refusal(json.dumps({"a\x1b\n" + "k" * 5000: 1, "A\x1b\n" + "K" * 5000: 2}).encode())
    assert len(message) < 300
    assert message.isprintable()


@pytest.mark.parametrize("known", [frozenset(), KNOWN])
@pytest.mark.parametrize(
    "body",
    [
        b"{}",
        b'{"model":"a"}',
        b'{"model":"a:b","messages":[{"role":"user","content":"x: {\\"model\\": 1}"}]}',
        b'{ "model" : "m" , "extra" : {"a":{"b":[":",{"c":":"}]}} , "e:x" : 1 }',
        b'{"mod\\u0065l":"a"}',
        b'{"_debug_render_only":true,"":1}',
        '{"model":"Modell-\u00e4\u00f6\u00fc \U0001f40e","x":"\\u003a"}'.encode(),
    ],
)
def test_an_object_comes_through_whole(body, known):
    fields = check_object(body, known=known)
    assert {key: json.loads(bytes(raw)) for key, raw in fields.items()} == json.loads(body)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.text(':{}"\\ab\u212a\u00e4', max_size=6),
    lambda children: (
        st.lists(children, max_size=3) | st.dictionaries(st.text(':"ab\\', max_size=3), children, max_size=3)
    ),
    max_leaves=8,
)
keys = st.text(':"abAB\\\u212ak\u017fs', max_size=3) | st.sampled_from(["model", "Model", "stream", "\u017ftream"])


@pytest.mark.slow
@given(st.lists(st.tuples(keys, json_values), max_size=6), st.booleans(), st.booleans())
def test_exactly_the_unambiguous_objects_pass(pairs, ascii_only, with_known):
    known = KNOWN if with_known else frozenset()
    members = [f"{json.dumps(k, ensure_ascii=ascii_only)}: {json.dumps(v, ensure_ascii=ascii_only)}" for k, v in pairs]
    body = ("{" + ", ".join(members) + "}").encode()
    folds = [key.casefold() for key, _ in pairs]
    ambiguous = len(set(folds)) < len(folds)
    shadowing = any(key.casefold() in known and key not in known for key, _ in pairs)
    try:
        fields = check_object(body, known=known)
    except InvalidRequest:
        assert ambiguous or shadowing
    else:
        assert not ambiguous and not shadowing
        assert {key: json.loads(bytes(raw)) for key, raw in fields.items()} == dict(pairs)


def _with_all_escaped(text: str) -> str:
    return '"' + "".join(f"\\u{ord(char):04x}" for char in text) + '"'


@given(st.lists(st.tuples(st.text("a:", min_size=1, max_size=2), st.booleans()), min_size=1, max_size=5))
def test_no_escaping_hides_a_duplicate(members):
    parts = [(_with_all_escaped(key) if escaped else json.dumps(key)) + ":1" for key, escaped in members]
    body = ("{" + ",".join(parts) + "}").encode()
    folds = [key for key, _ in members]
    if len(set(folds)) < len(folds):
        refusal(body)


@pytest.mark.parametrize("fields", [FIELDS_MAX, FIELDS_MAX + 1])
def test_the_number_of_fields_is_bounded(fields):
    body = json.dumps({f"k{index}": index for index in range(fields)}).encode()
    if fields <= FIELDS_MAX:
        assert len(check_object(body, known=KNOWN)) == fields
    else:
        assert "fields" in refusal(body)


@pytest.mark.slow
def test_a_million_keys_are_refused_without_looking_at_them():
    body = b'{"model":"m",' + b",".join(b'"k%d":%d' % (index, index) for index in range(1_000_000)) + b"}"
    started = time.perf_counter()
    assert refusal(body) == "too many unknown fields"
    assert time.perf_counter() - started < 0.5  # 15 ms on a quiet core


def test_many_colons_in_known_fields_are_no_offence():
    body = json.dumps({"model": "m", "messages": [{"role": "user", "content": ":"}] * 30_000}).encode()
    assert set(check_object(body, known=KNOWN)) == {"model", "messages"}


@pytest.mark.parametrize(
    "body",
    [b'{"model":' + b"[" * 100_000, b'{"a":' * 100_000, b'{"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}"],
)
def test_a_depth_bomb_is_a_400(body):
    assert refusal(body) == "invalid JSON: nested too deeply"


def test_depth_is_counted_exactly():
    def nested(depth):
        value = 1
        for level in range(depth):
            value = [value] if level % 2 else {"k": value}
        return value

    check_depth(nested(DEPTH_MAX), "x")
    with pytest.raises(InvalidRequest, match="x is nested deeper than 64 levels"):
        check_depth(nested(DEPTH_MAX + 1), "x")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("options", {str(number): number for number in range(10_000)}),
        ("format", [[]] * 300_000),
        ("tools", [{}] * 400_000),
        ("messages", [{"role": "user"}] * (OBJECTS_MAX + 1)),
    ],
)
def test_masses_of_small_things_are_refused_before_they_are_decoded(field, value):
    known = frozenset({"model", field})
    with pytest.raises(InvalidRequest) as refused:
        check_object(json.dumps({"model": "m", field: value}).encode(), known=known)
    assert refused.value.status == 413
    assert field in refused.value.message


def test_braces_in_a_long_text_are_no_objects():
    code = "function f() { return {}; }\n" * OBJECTS_MAX
    body = json.dumps({"model": "m", "messages": [{"role": "user", "content": code}]}).encode()
    assert set(check_object(body, known=KNOWN)) == {"model", "messages"}


class Asked(msgspec.Struct):
    """What the gate of these tests decodes."""

    model: str = ""
    stream: bool | None = None
    messages: object = None
    keep_alive: object = None
    debug_render_only: object = msgspec.field(name="_debug_render_only", default=None)


GATE = Gate(Asked, KNOWN)
ASKED = msgspec.json.Decoder(Asked)
SEPARATORS = {"compact": (",", ":"), "python": (", ", ": "), "blanks": (" ,\t", " :\r\n")}


def verdict(parse) -> tuple[object, ...]:
    try:
        return ("passed", parse())
    except InvalidRequest as refused:
        return (refused.status, refused.message)


def the_long_way(body: bytes) -> Asked:
    check_object(body, known=KNOWN)
    return decode_as(body, ASKED)


@pytest.mark.parametrize("separators", SEPARATORS)
@pytest.mark.parametrize("ascii_only", [True, False])
def test_what_clients_usually_send_takes_the_short_way(separators, ascii_only):
    whole = {"model": "m:1", "messages": [{"role": "user", "content": 'h\u00e9: "x", {}'}], "stream": False}
    for fields in ({}, {"model": "m"}, whole, dict(reversed(whole.items()))):
        body = json.dumps(fields, separators=SEPARATORS[separators], ensure_ascii=ascii_only).encode()
        assert GATE.usual(body)
        assert GATE(body) == the_long_way(body)


@pytest.mark.parametrize(
    "body",
    [
        b'{"model":"a","model":"b"}',
        b'{"model":"a", "model":"b"}',
        b'{"model": "a", "messages": 1, "stream": true,"stream":1}',  # as long as if each colon had a blank
        b'{"stream":1,"stream" : 1}\n',
        b'{"model":"a","mod\\u0065l":"b"}',
        b'{"mod\\u0065l":"a"}',
        b'{"model":"a","x":1}',
        b'{"model":"a","Model":"b"}',
        b'{"model":"\xff"}',
        b'{"messages":[{"a":"\xff"}]}',
        b"[]",
        b"null",
        b"",
        b'{"model":"a"}x',
        b'{"model":"' + b"a" * QUICK_BYTES_MAX + b'"}',
    ],
)
def test_the_short_way_leaves_all_else_to_the_long_one(body):
    assert not GATE.usual(body)
    assert verdict(lambda: GATE(body)) == verdict(lambda: the_long_way(body))


@pytest.mark.parametrize(
    ("body", "usual"),
    [
        (b'{"model":"a","user":{"k":[1,1]}}', True),
        (b'{"user": 1, "model": "a"}', True),
        (b'{"model":"a","user":1,"user":1}', False),
        (b'{"model":"a","user":1,"User":1}', False),
        (b'{"model":"a","User":1}', False),
        (b'{"model":"a","user":"\\ud800","user2":1}', False),
    ],
)
def test_an_ignored_field_may_stand_beside_the_others_once(body, usual):
    gate = Gate(Asked, KNOWN, ignored=frozenset({"user"}))
    assert gate.usual(body) is usual
    assert verdict(lambda: gate(body)) == verdict(lambda: the_long_way(body))


def test_no_mass_fits_through_the_short_way():
    assert min(SIZES_MAX.values()) >= QUICK_BYTES_MAX  # of one field
    assert len(b"{}," * OBJECTS_MAX) > QUICK_BYTES_MAX


members = st.tuples(
    st.sampled_from(sorted(KNOWN)) | keys,
    json_values,
    st.sampled_from(sorted(SEPARATORS)),
    st.integers(0, 9).map(lambda number: number == 0),
)
damages = st.tuples(st.integers(0, 400), st.sampled_from([b"", *(bytes([byte]) for byte in b'{}[]",: \\\xff0a')]))


@pytest.mark.slow
@given(
    st.lists(members, max_size=7) | st.lists(members, max_size=7, unique_by=lambda member: member[0]),
    st.sampled_from([*sorted(SEPARATORS), "mixed"]),
    st.none() | st.none() | damages,
)
def test_the_short_way_accepts_nothing_that_the_long_way_refuses(pairs, style, damage):
    texts = []
    for key, value, own, escaped in pairs:
        separators = SEPARATORS[own if style == "mixed" else style]
        name = _with_all_escaped(key) if escaped and max(map(ord, key), default=0) < 1 << 16 else json.dumps(key)
        texts.append(name + separators[1] + json.dumps(value, separators=separators, ensure_ascii=escaped))
        texts.append(separators[0])
    body = ("{" + "".join(texts[:-1]) + "}").encode()
    if damage is not None:
        place = damage[0] % len(body)
        body = body[:place] + damage[1] + body[place + 1 :]
    if GATE.usual(body):
        check_object(body, known=KNOWN)
        assert set(json.loads(body)) <= KNOWN
    assert verdict(lambda: GATE(body)) == verdict(lambda: the_long_way(body))


@pytest.mark.parametrize("unit", ["[]", "[[]]", '[""]', "[1]", "[ ]", "[[[[]]]]"])
def test_masses_of_lists_in_messages_are_refused_before_they_are_decoded(unit):
    body = b'{"messages":[{"content":[' + b",".join([unit.encode()] * (LISTS_MAX + 2)) + b"]}]}"
    with pytest.raises(InvalidRequest, match="holds more than") as caught:
        check_object(body)
    assert caught.value.status == 413


def test_masses_of_values_are_refused_wherever_they_stand():
    body = b'{"model":"m","images":[' + b"1," * (COMMAS_MAX + 1) + b"1]}"
    with pytest.raises(InvalidRequest, match="values") as caught:
        check_object(body)
    assert caught.value.status == 413


def test_a_text_full_of_brackets_is_a_text():
    code = "rows = [[a for a in b] for c in d]\nx[y[z]] = f(q[(1)])\n" * LISTS_MAX
    assert check_object(json.dumps({"messages": [{"role": "user", "content": code}]}).encode())
