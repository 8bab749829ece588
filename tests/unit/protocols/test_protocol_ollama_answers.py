"""What workers answer; sections are those of ollama.md."""

import json

import pytest

from bellmare.protocols import ollama
from bellmare.protocols.errors import BadAnswer
from bellmare.protocols.ollama import blob_of, decode_final, expires_before, expires_far, first_error, num_ctx_of

HEX = "0123456789abcdef" * 4


def test_a_final_line_carries_the_counters():
    final = decode_final(
        b'{"model":"m","created_at":"2026-01-01T00:00:00Z","message":{"role":"assistant","content":""},"done":true,'
        b'"done_reason":"stop","total_duration":9,"load_duration":1,"prompt_eval_count":2,"prompt_eval_duration":3,'
        b'"eval_count":4,"eval_duration":5}'
    )
    assert final == ollama.Final(
        done=True,
        done_reason="stop",
        total_duration=9,
        load_duration=1,
        prompt_eval_count=2,
        prompt_eval_duration=3,
        eval_count=4,
        eval_duration=5,
    )


@pytest.mark.parametrize(
    "line", [b'{"message":{"content":"done:true"},"done":false}', b"{}", b"", b"not json", b"[]", b"[" * 99_999]
)
def test_other_lines_are_not_final(line):
    assert decode_final(line) is None


def test_an_error_line_is_final():
    # 12: a runner killed in mid-stream
    line = b'{"error":"an error was encountered while running the model: unexpected EOF"}'
    final = decode_final(line)
    assert final is not None
    assert (final.done, final.error) == (False, "an error was encountered while running the model: unexpected EOF")


@pytest.mark.parametrize(
    ("line", "text"),
    [
        # 12: a pull from an unreachable registry
        (
            b'{"error":"pull model manifest: Get x: connection refused"}',
            "pull model manifest: Get x: connection refused",
        ),
        (b'{"error":""}', '{"error":""}'),
        (b'{"error":{"message":"inner"}}', "inner"),
        (b'{"error":null,"done":false}', None),
        (b'{"message":{"content":"{\\"error\\":1}"},"done":false}', None),
        (b'{"status":"pulling manifest"}', None),
        (b"garbage", None),
    ],
)
def test_an_error_inside_a_200_is_seen(line, text):
    assert first_error(line) == text


def test_tags_keep_each_models_own_json():
    model = '{"name": "m:latest","model":"m:latest","size":7,"digest":"HEX","details":{"x":[1]},"new":1}'.replace(
        "HEX", HEX
    )
    answer = ollama.decode_tags(f'{{"models":[{model}],"x":1}}'.encode())
    (tagged,) = answer.models
    assert (tagged.name, tagged.digest, tagged.size) == ("m:latest", HEX, 7)
    assert bytes(tagged.raw).decode() == model


def test_ps_is_typed():
    # 12: a CPU build shows size 0
    (running,) = ollama.decode_ps(
        b'{"models":[{"name":"m:latest","model":"m:latest","size":0,"digest":"d","details":{},'
        b'"expires_at":"2318-01-01T00:00:00.5+02:00","size_vram":0,"context_length":4096}]}'
    ).models
    assert (running.name, running.size, running.size_vram, running.context_length) == ("m:latest", 0, 0, 4096)
    assert json.loads(bytes(running.raw))["details"] == {}
    assert expires_far(running.expires_at)


@pytest.mark.parametrize("body", [b'{"models":null}', b'{"models":[]}', b"{}"])
def test_no_models_is_an_empty_list(body):
    assert ollama.decode_tags(body).models == []
    assert ollama.decode_ps(body).models == []


@pytest.mark.parametrize("body", [b"", b"[]", b'{"models":[{}]}', b'{"models":[{"name":1}]}', b"<html>", b"[" * 99_999])
def test_a_bad_answer_says_of_what(body):
    with pytest.raises(BadAnswer, match=r"^/api/tags: "):
        ollama.decode_tags(body)
    with pytest.raises(BadAnswer, match=r"^/api/ps: "):
        ollama.decode_ps(body)


def test_show_has_what_the_memory_formula_needs():
    # 1.4: arrays come as null without verbose
    answer = ollama.decode_show(
        b'{"modelfile":"FROM /x","parameters":"num_ctx 4096","details":{"family":"llama","families":null},'
        b'"model_info":{"general.architecture":"llama","llama.block_count":32,"llama.attention.head_count_kv":null},'
        b'"tensors":[{"name":"blk.0.q","type":"Q4_K","shape":[4096,4096]}],"capabilities":["completion"],"license":"x"}'
    )
    assert answer.details.family == "llama"
    assert answer.model_info == {
        "general.architecture": "llama",
        "llama.block_count": 32,
        "llama.attention.head_count_kv": None,
    }
    assert answer.tensors is not None and answer.tensors[0].shape == [4096, 4096]
    assert answer.capabilities == ["completion"]
    with pytest.raises(BadAnswer):
        ollama.decode_show(b'{"modelfile":1}')


@pytest.mark.parametrize(
    ("modelfile", "blob"),
    [
        (f"FROM /usr/share/ollama/.ollama/models/blobs/sha256-{HEX}\n", f"sha256:{HEX}"),
        (f"# FROM llama3.1:8b\n\nFROM /b/sha256-{HEX}\nFROM /b/sha256-{'f' * 64}\n", f"sha256:{HEX}"),
        (f'FROM "C:\\Users\\x y\\blobs\\sha256-{HEX.upper()}"\r\n', f"sha256:{HEX}"),
        (f"from sha256:{HEX}", f"sha256:{HEX}"),
        ("FROM /models/some file.gguf  \nTEMPLATE x", "/models/some file.gguf"),
        (f'TEMPLATE """FROMAGE"""\nFROM /b/sha256-{HEX}', f"sha256:{HEX}"),
        (f"FROM /b/sha256-{HEX}0", f"/b/sha256-{HEX}0"),
        ("", ""),
        ("PARAMETER num_ctx 1", ""),
    ],
)
def test_the_blob_is_in_the_first_from_line(modelfile, blob):
    assert blob_of(modelfile) == blob


@pytest.mark.parametrize(
    ("parameters", "num_ctx"),
    [
        ('stop                           "<|eot|>"\nnum_ctx                        8192\ntemperature 1', 8192),
        ("num_ctx 4096", 4096),
        ("", 0),
        ("num_ctx_x 7", 0),
        ('stop "num_ctx 7"', 0),
        ("num_ctx x", 0),
    ],
)
def test_num_ctx_of_a_modelfile(parameters, num_ctx):
    assert num_ctx_of(parameters) == num_ctx


@pytest.mark.parametrize(
    ("expires_at", "far"),
    [
        ("2318-11-05T12:00:00.123456789+01:00", True),
        ("2100-01-01T00:00:00Z", True),
        ("2099-12-31T23:59:59Z", False),
        ("0001-01-01T00:00:00Z", False),
        ("", False),
        ("soon", False),
    ],
)
def test_a_pinned_model_expires_centuries_from_now(expires_at, far):
    assert expires_far(expires_at) is far


@pytest.mark.parametrize(
    ("expires_at", "now", "before"),
    [
        ("2026-01-01T01:00:00+02:00", "2026-01-01T00:00:00Z", True),
        ("2026-01-01T01:00:00-02:00", "2026-01-01T00:00:00Z", False),
        ("2026-01-01T00:00:00Z", "2026-01-01T00:00:00Z", False),
        ("2026-01-01T00:00:00.000001Z", "2026-01-01T00:00:00.000002Z", True),
        ("", "2026-01-01T00:00:00Z", False),
    ],
)
def test_expiry_is_compared_across_offsets(expires_at, now, before):
    assert expires_before(expires_at, now) is before
