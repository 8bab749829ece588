"""Sources and their order, origins, and that everything wrong is told in one go, one line each, at its place."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from bellmare.core.config import CoreConfig, ModelConfig, TenantConfig
from bellmare.core.events import WorkerKind
from bellmare.settings import Settings, SettingsError, load_settings
from bellmare.settings.problems import PROBLEMS_MAX
from bellmare.settings.yaml_text import SIZE_MAX


def load(
    tmp_path: Path,
    text: str | bytes | None = None,
    *,
    environment: Mapping[str, str] | None = None,
    **flags: object,
) -> Settings:
    path = None
    if text is not None:
        path = tmp_path / "bellmare.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    flags = {name.replace("__", "."): value for name, value in flags.items()}
    return load_settings(path, environment=environment or {}, overrides=flags)


def refused(
    tmp_path: Path, text: str | bytes | None = None, *, environment: Mapping[str, str] | None = None, **flags: object
) -> list[str]:
    with pytest.raises(SettingsError) as refusal:
        load(tmp_path, text, environment=environment, **flags)
    lines = [str(problem).replace(f"{tmp_path}/", "") for problem in refusal.value.problems]
    assert all("\n" not in line and line.isprintable() for line in lines)
    return lines


def test_nothing_at_all_is_a_valid_configuration_and_equals_the_cores_defaults(tmp_path: Path) -> None:
    assert load(tmp_path).core_config() == CoreConfig()
    assert load(tmp_path, "").core_config() == CoreConfig()
    assert load(tmp_path, "# only a comment\nworkers:\n").workers == ()


def test_later_sources_win_key_by_key_and_origins_tell(tmp_path: Path) -> None:
    settings = load(
        tmp_path,
        "num_ctx: 4096\nqueue:\n  per_model: 10\n  total: 100\n  wait: 3s\n",
        environment={"BELLMARE_QUEUE__PER_MODEL": "20", "BELLMARE_QUEUE__WAIT": "4s", "OLLAMA_CONTEXT_LENGTH": "2048"},
        queue__wait="5s",
        listen=None,
    )
    assert (settings.num_ctx, settings.queue.total) == (4096, 100)
    assert (settings.queue.per_model, settings.queue.wait_us) == (20, 5_000_000)
    assert settings.origin_of("num_ctx") == f"{tmp_path}/bellmare.yaml:1"
    assert settings.origin_of("queue.total") == f"{tmp_path}/bellmare.yaml:4"
    assert settings.origin_of("queue.per_model") == "env BELLMARE_QUEUE__PER_MODEL"
    assert settings.origin_of("queue.wait") == "flag queue.wait"
    assert settings.origin_of("queue.timeout") == "default"
    assert settings.origin_of("listen") == "default"


def test_the_core_is_told_every_limit_it_has_a_key_for(tmp_path: Path) -> None:
    text = """
num_ctx: 1024
eviction: lru
ahead: false
shadows: false
switch_policy: false
queue: {per_model: 1, total: 2, wait: 3s, timeout: 4s}
drain_after: 6s
drain_max: 8s
batch_max: 9s
limits: {load_timeout: 7s}
models:
  Llama3.1: {pinned: true}
  library/qwen2.5:7B: {num_ctx: 16384, context_classes: [32768, 2048]}
tenants: {192.0.2.7: {weight: 10}, "::1": {}}
"""
    assert load(tmp_path, text).core_config() == CoreConfig(
        default_num_ctx=1024,
        queue_per_model_max=1,
        queue_total_max=2,
        queue_wait_max_us=3_000_000,
        drain_after_us=6_000_000,
        drain_max_us=8_000_000,
        batch_max_us=9_000_000,
        load_timeout_us=7_000_000,
        eviction="lru",
        ahead=False,
        shadows=False,
        switch_policy=False,
        models={
            "llama3.1:latest": ModelConfig(pinned=True),
            "qwen2.5:7b": ModelConfig(num_ctx=16384, context_classes=(2048, 32768)),
        },
        tenants={"192.0.2.7": TenantConfig(weight=10), "::1": TenantConfig()},
    )


def test_every_problem_of_every_source_is_told_at_once_in_order(tmp_path: Path) -> None:
    text = """\
listen: 127.0.0.1:99999
queue:
  wat: 5s
  per_model: 0
per_model: 4
workers:
  - url: http://127.0.0.1:11434
    paralel: 3
  - sim: {vram: 24G}
log:
  level: inf
log: {}
models: 5
"""
    assert refused(
        tmp_path, text, environment={"BELLMARE_QUEUE_TOTAL": "3", "BELLMARE_NUM_CTX": "1"}, adminn="off"
    ) == [
        "bellmare.yaml:1:9: listen: '99999' is not a port; 0 to 65535",
        "bellmare.yaml:3:3: queue.wat: unknown key; did you mean `wait`?",
        "bellmare.yaml:4:14: queue.per_model: 0 is out of range; 1 to 100000 requests",
        "bellmare.yaml:5:1: per_model: unknown key; did you mean `queue.per_model`?",
        "bellmare.yaml:8:5: workers.0.paralel: unknown key; did you mean `parallel`?",
        "bellmare.yaml:9:17: workers.1.sim.vram: '24G' has the unknown unit 'G'; say 24GB (10^9) or 24GiB (2^30)",
        "bellmare.yaml:11:10: log.level: 'inf' is none of debug, info, warning, error; did you mean `info`?",
        "bellmare.yaml:12:1: log: duplicate key; it is already set in line 10",
        "bellmare.yaml:13:9: models: 5 is not a mapping of keys",
        "env BELLMARE_QUEUE_TOTAL: unknown variable; did you mean `BELLMARE_QUEUE__TOTAL`?",
        "env BELLMARE_NUM_CTX: num_ctx: 1 is out of range; 4 to 16777216 tokens",
        "flag adminn: unknown key; did you mean `admin`?",
    ]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (
            "a: [1",
            "bellmare.yaml:1:6: not valid YAML: expected ',' or ']', but got '<stream end>' while parsing",
        ),
        ("log:\n\tlevel: info", "bellmare.yaml:2:1: not valid YAML: found character '\\t' that cannot start any token"),
        ("a: \x01", "bellmare.yaml:1:4: not valid YAML: the character"),
        ("- listen", "bellmare.yaml: holds ['listen'] instead of keys"),
        ("listen", "bellmare.yaml: holds 'listen' instead of keys"),
        ("a: 1\n---\nb: 2", "bellmare.yaml:2:1: a second document"),
        ("listen: *x", "bellmare.yaml:1:9: listen: the alias *x has no anchor &x before it"),
        ("log: !!python/object:os.system {}", "bellmare.yaml:1:6: log: the tag"),
        ("listen: !!python/name:os.system x", "the tag"),
        ("? [a]\n: b", "bellmare.yaml:1:3: a key must be a plain word"),
        ("log: &l {level: info}\nqueue: {<<: *l}", "bellmare.yaml:2:9: queue.<<: merge keys are not understood"),
        ("queue: " + "[" * 100_000, "nested deeper than 16 levels"),
        ("queue: " + "[a," * 10_000, "nested deeper than 16 levels"),
        ("queue: " + "{a: " * 10_000, "nested deeper than 16 levels"),
        ("- " * 5_000, "nested deeper than 16 levels"),
        (b"listen: x\nlog: \xff", "bellmare.yaml:2: not UTF-8 text"),
        (b"#" * (SIZE_MAX + 1), "bellmare.yaml: larger than 1MiB"),
        ("insecure: yes please", "bellmare.yaml:1:11: insecure: 'yes please' is neither true nor false"),
        ("workers: http://a", "bellmare.yaml:1:10: workers: 'http://a' is not a list"),
        ("queue: 5", "bellmare.yaml:1:8: queue: 5 is not a mapping of keys"),
        ("record: yes", "bellmare.yaml:1:9: record: 'yes' is neither a mapping nor off"),
        ("drain_after: 2d", "bellmare.yaml:1:14: drain_after: '2d' is out of range; a time from 0s to 24h"),
    ],
)
def test_a_file_that_cannot_be_is_one_line(tmp_path: Path, text: str | bytes, line: str) -> None:
    problems = refused(tmp_path, text)
    assert line in problems[0]


def test_an_alias_bomb_is_stopped_while_it_grows(tmp_path: Path) -> None:
    bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 9)
    )
    assert "more than 20000 values, aliases expanded" in refused(tmp_path, bomb)[-1]


def test_an_alias_may_stand_for_a_part(tmp_path: Path) -> None:
    settings = load(tmp_path, "models:\n  a: &big {num_ctx: 16384}\n  b: *big\n")
    assert settings.models["b"].num_ctx == 16384
    assert settings.origin_of(("models", "b", "num_ctx")) == f"{tmp_path}/bellmare.yaml:3"


def test_a_hopeless_file_does_not_flood(tmp_path: Path) -> None:
    problems = refused(tmp_path, "".join(f"zzz{n}: 1\n" for n in range(400)))
    assert len(problems) == PROBLEMS_MAX + 1
    assert problems[-1].endswith("350 more problems")


def test_a_missing_file_and_a_directory_are_told(tmp_path: Path) -> None:
    for path, reason in ((tmp_path / "no.yaml", "no such file"), (tmp_path, "cannot be read: is a directory")):
        with pytest.raises(SettingsError) as refusal:
            load_settings(path, environment={}, overrides={})
        assert str(refusal.value) == f"{path}: {reason}"
        assert refusal.value.exit_status == 2


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("listen: 0.0.0.0:11435", "1:9: listen: 0.0.0.0:11435 can be reached from other machines"),
        ("admin: '[::]:1'", "1:8: admin: [::]:1 can be reached from other machines"),
        ("admin: 11435", "1:8: admin: 127.0.0.1:11435 is where `listen` already is"),
        ("queue: {total: 5}", "1:16: queue.total: 5 is less than `queue.per_model` (512)"),
        (
            "limits: {body: 1GiB}",
            "limits.bodies: 512MiB is less than `limits.body` (1GiB): the largest could never be read",
        ),
        ("queue: {timeout: 5s}", "1:18: queue.timeout: 5s is less than `queue.wait` (120s)"),
        ("workers: [{name: a}]", "1:11: workers.0: a worker needs exactly one of url, embedded and sim; it has none"),
        ("workers: [{sim: {}, embedded: {}}]", "exactly one of url, embedded and sim; it has embedded and sim"),
        ("workers: [{sim: {}, vram: 8GB}]", "workers.0.vram: belongs to a worker with a url; this one is sim"),
        ("workers: [http://localhost:11435]", "workers.0.url: http://localhost:11435 is bellmare's own listener"),
        ("workers: [a, 'http://a:11434']", "workers.1.name: 'a:11434' is already the name of worker 0"),
        ("workers: [{url: a, name: x}, {url: a, name: y}]", "workers.1.url: http://a:11434 is already worker 0"),
        ("workers: ['127.0.0.1', 'localhost']", "workers.1.url: http://localhost:11434 is already worker 0"),
        ("workers: [{url: a, vram: 1GB}]", "workers.0.vram: 1GB leaves no room beside the headroom of 1GiB"),
        ("models: {'a b': {}}", "1:10: models.a b: invalid model name"),
        ("models: {llama3: {}, 'LLAMA3:latest': {}}", "models.LLAMA3:latest: is the same model as 'llama3'"),
    ],
)
def test_keys_that_contradict_each_other_are_refused(tmp_path: Path, text: str, line: str) -> None:
    assert line in "\n".join(refused(tmp_path, text))


def test_listening_to_the_world_needs_a_word(tmp_path: Path) -> None:
    assert str(load(tmp_path, "listen: 0.0.0.0:1\nadmin: off\ninsecure: true").listen) == "0.0.0.0:1"
    assert load(tmp_path, listen="0.0.0.0:1", insecure=True).insecure


def test_workers_are_of_three_kinds_with_names_of_their_own(tmp_path: Path) -> None:
    text = "workers:\n  - a\n  - url: http://[::1]:5\n  - sim: {}\n  - sim: {speed: 10}\n"
    text += "  - embedded: {memory: 1GiB, models: ~/models}\n"
    workers = load(tmp_path, text, environment={"HOME": "/users/ada/"}).workers
    assert [worker.name for worker in workers] == ["a:11434", "[::1]:5", "sim", "sim-2", "embedded"]
    ollama, sim, embedded = WorkerKind.ollama, WorkerKind.sim, WorkerKind.embedded
    assert [worker.kind for worker in workers] == [ollama, ollama, sim, sim, embedded]
    assert workers[3].sim is not None
    assert workers[3].sim.speed == 10
    assert workers[4].embedded is not None
    assert workers[4].embedded.models == "/users/ada/models"
    assert "needs HOME, which is not set" in refused(tmp_path, text)[0]


def test_headroom_follows_the_kind_of_worker_unless_it_is_set(tmp_path: Path) -> None:
    settings = load(tmp_path)
    assert settings.headroom_bytes(WorkerKind.ollama, 24 << 30) == 1 << 30
    assert settings.headroom_bytes(WorkerKind.embedded, 4 << 30) == 0
    settings = load(tmp_path, "headroom: 5%")
    assert settings.headroom_bytes(WorkerKind.embedded, 1000) == 50


def test_parts_can_be_switched_off(tmp_path: Path) -> None:
    settings = load(tmp_path, "admin: off\nrecord: false\n")
    assert settings.admin is None
    assert settings.record is None
    assert load(tmp_path, "record: off", environment={"BELLMARE_RECORD__KEEP": "3"}).record is not None
    assert load(tmp_path, environment={"BELLMARE_RECORD": "off", "BELLMARE_ADMIN": "off"}).record is None


def test_lists_and_mappings_come_from_the_environment_whole(tmp_path: Path) -> None:
    settings = load(
        tmp_path,
        "workers: [a]\nmodels: {m: {num_ctx: 4096}}",
        environment={
            "BELLMARE_WORKERS": "http://b:1, c",
            "BELLMARE_MODELS": '{"m": {"pinned": true}, "n": {}}',
        },
    )
    assert [str(worker.url) for worker in settings.workers] == ["http://b:1", "http://c:11434"]
    assert (settings.models["m"].num_ctx, settings.models["m"].pinned) == (4096, True)
    assert settings.origin_of("workers.0.url") == "env BELLMARE_WORKERS"
    assert settings.origin_of(("models", "m", "pinned")) == "env BELLMARE_MODELS"
    assert settings.origin_of(("models", "m", "num_ctx")) == f"{tmp_path}/bellmare.yaml:2"
    assert refused(tmp_path, environment={"BELLMARE_WORKERS__0__URL": "a", "BELLMARE_MODELS": "{a"}) == [
        "env BELLMARE_MODELS: expected ',' or '}', but got '<stream end>' while parsing a flow mapping".replace(
            "MODELS: ", "MODELS: not valid YAML: "
        ),
        "env BELLMARE_WORKERS__0__URL: unknown variable; set BELLMARE_WORKERS as a whole, "
        "for example to [{url: http://127.0.0.1:11434}]",
    ]


def test_variables_that_are_not_about_us_are_left_alone(tmp_path: Path) -> None:
    environment = {
        "BELLMARE_CONFIG": "x.yaml",
        "BELLMARE_LISTEN": "",
        "BELLMARE_SERVICE_HOST": "10.0.0.1",
        "BELLMARE_SERVICE_PORT_HTTP": "80",
        "BELLMARE_PORT": "tcp://10.0.0.1:80",
        "BELLMARE_PORT_80_TCP_ADDR": "10.0.0.1",
        "BELLMARE_ADMIN_SERVICE_PORT": "1",
        "bellmare_listen": "x",
        "PATH": "x",
    }
    assert load(tmp_path, environment=environment).origin_of("listen") == "default"


def test_ollamas_variables_are_defaults_for_workers_on_this_machine(tmp_path: Path) -> None:
    environment = {
        "OLLAMA_HOST": "0.0.0.0",
        "OLLAMA_NUM_PARALLEL": "4",
        "OLLAMA_CONTEXT_LENGTH": '"16384"',
        "OLLAMA_MAX_LOADED_MODELS": "0",
        "MAX_VRAM_BYTES": "24GB",
    }
    text = "workers:\n  - localhost\n  - {url: 'http://127.0.0.1:5', parallel: 2, vram: 8GB}\n  - far\n"
    settings = load(tmp_path, text, environment=environment)
    assert settings.num_ctx == 16384
    assert [worker.parallel for worker in settings.workers] == [4, 2, None]
    assert [worker.vram_bytes for worker in settings.workers] == [24 * 10**9, 8 * 10**9, None]
    assert settings.origin_of("workers.0.parallel") == "env OLLAMA_NUM_PARALLEL"
    assert str(settings.ollama_host) == "http://127.0.0.1:11434"
    found = settings.worker_at("http://127.0.0.1:11434")
    assert (found.parallel, found.vram_bytes, found.name) == (4, 24 * 10**9, "127.0.0.1:11434")
    assert settings.worker_at("http://far:11434").parallel is None
    assert settings.with_workers(found).workers == (found,)


def test_ollamas_variables_never_stop_us(tmp_path: Path) -> None:
    settings = load(tmp_path, environment={"OLLAMA_HOST": "127.0.0.1:11435", "OLLAMA_NUM_PARALLEL": "many"})
    assert settings.ollama_host is None
    assert settings.warnings == (
        "env OLLAMA_NUM_PARALLEL is ignored: 'many' is not a whole number; 1 to 1024 slots",
        "env OLLAMA_HOST is ignored: http://127.0.0.1:11435 is bellmare itself",
    )


def test_too_many_workers_are_refused(tmp_path: Path) -> None:
    flags = {"workers": [f"gpu{n}" for n in range(1001)]}
    assert refused(tmp_path, **flags) == ["flag workers: has 1001 entries; at most 1000"]
    assert len(load(tmp_path, workers=[f"gpu{n}" for n in range(1000)]).workers) == 1000
