"""The codecs' benchmark measures what it says, on requests and answers that are taken as they should be."""

import json

import pytest

from bellmare.bench import codec
from bellmare.gateway.translate import DialectStream, Native
from bellmare.protocols.anthropic import _gate
from bellmare.protocols.ollama_requests import _parse_chat, _parse_generate
from bellmare.protocols.openai_stream import ChatStream


def test_it_prints_every_codec_as_one_json_object(capsys):
    codec.main(["--runs", "1", "--json"])
    figures = json.loads(capsys.readouterr().out)["codecs"]
    assert [figure["name"] for figure in figures] == list(codec.cases())
    assert all(figure["us"] > 0 and figure["bytes"] > 0 for figure in figures)


def test_it_prints_a_table(capsys):
    codec.main(["--runs", "1"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + len(codec.cases())
    assert lines[0].split() == ["codec", "bytes", "us"]


@pytest.mark.parametrize("runs", ["0", str(codec.RUNS_MAX + 1)])
def test_runs_are_bounded(runs, capsys):
    with pytest.raises(SystemExit):
        codec.main(["--runs", runs])
    assert "--runs must be" in capsys.readouterr().err


def test_its_requests_are_of_a_kibibyte_and_take_the_way_that_they_are_named_for():
    bodies = codec.bodies()
    assert all(900 <= len(body) <= 1150 for _, body in bodies.values())
    assert _parse_chat.usual(bodies["chat"][1])
    assert _parse_chat.usual(bodies["chat, with blanks"][1])
    assert not _parse_chat.usual(bodies["chat, unknown field"][1])
    assert _parse_generate.usual(bodies["generate"][1])
    for name in ("chat/completions", "messages"):
        assert bodies[name][0](bodies[name][1]).stream
    assert _gate.usual(bodies["messages"][1])


def test_its_answers_are_whole():
    native = Native()
    assert native.feed(codec.TOKEN) == codec.TOKEN
    assert native.feed(codec.WHOLE) == codec.WHOLE
    assert native.final is not None
    assert native.final.eval_count == 25
    events = DialectStream(ChatStream(completion_id="c", created_s=1, model="m", include_usage=False))
    assert json.loads(events.feed(codec.TOKEN)[6:])["choices"][0]["delta"]["content"] == " word"
