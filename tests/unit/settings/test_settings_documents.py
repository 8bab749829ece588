"""The published schema, table and example say what the code does."""

from pathlib import Path
from typing import Any

import jsonschema
import pytest

from bellmare.settings import load_settings, settings_schema
from bellmare.settings.describe import can_be_off, settings_rows, show_default
from bellmare.settings.keys import all_keys
from bellmare.settings.schema import documents, main
from bellmare.settings.yaml_text import read_yaml

DOCS = Path(__file__).parents[3] / "docs"
EXAMPLE = DOCS / "bellmare.example.yaml"


@pytest.fixture(scope="module")
def validator() -> jsonschema.Draft202012Validator:
    schema = settings_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def test_generated_documents_are_the_committed_ones(tmp_path: Path) -> None:
    assert main([str(tmp_path)]) == 0
    for name in documents():
        assert (DOCS / name).read_text() == (tmp_path / name).read_text(), "run `make docs`"


def test_the_example_is_valid_for_the_schema_and_the_loader(validator: jsonschema.Draft202012Validator) -> None:
    validator.validate(read_yaml(EXAMPLE.read_text()).value)
    settings = load_settings(EXAMPLE, environment={"HOME": "/users/ada"}, overrides={})
    assert len(settings.workers) == 4


def test_the_example_has_every_key() -> None:
    present: set[tuple[str, ...]] = set()
    for path in read_yaml(EXAMPLE.read_text()).values:
        parts = ["[]" if isinstance(part, int) else part for part in path]
        if parts[:1] in (["models"], ["tenants"]) and len(parts) > 1:
            parts[1] = "<name>"
        present.add(tuple(parts))
    assert {key.path for key in all_keys()} <= present


def test_every_key_has_a_reason_and_every_default_is_accepted() -> None:
    keys = list(all_keys())
    assert len(keys) > 35
    for key in keys:
        assert len(key.description) > 15
        if key.kind is not None and key.default not in (None, ""):
            assert key.kind.parse(show_default(key)) == key.default


@pytest.mark.parametrize(
    "value",
    [
        {"listn": "x"},
        {"queue": {"per_model": 0}},
        {"queue": {"per_model": "many"}},
        {"limits": {"body": "64M"}},
        {"drain_after": "5x"},
        {"workers": [{}]},
        {"workers": [{"url": "a", "sim": {}}]},
        {"log": {"level": "loud"}},
        {"record": "on"},
        {"models": {"a": {"pinned": "very"}}},
    ],
)
def test_the_schema_refuses_what_the_loader_refuses(validator: jsonschema.Draft202012Validator, value: Any) -> None:
    assert not validator.is_valid(value)


@pytest.mark.parametrize(
    "value",
    [
        {"admin": "off", "record": False},
        {"listen": 11435, "headroom": "5%", "drain_after": 0.5},
        {"workers": ["a", {"sim": {}}], "models": {"a": {}}},
        {"limits": {"body": "1.5GiB", "token_timeout": "1h30m"}},
    ],
)
def test_the_schema_accepts_what_the_loader_accepts(validator: jsonschema.Draft202012Validator, value: Any) -> None:
    validator.validate(value)


def test_rows_show_every_key_in_force_with_its_origin() -> None:
    settings = load_settings(EXAMPLE, environment={"HOME": "/users/ada"}, overrides={"listen": "[::1]:5"})
    rows = {row.key: (row.value, row.origin) for row in settings_rows(settings)}
    assert rows["listen"] == ("[::1]:5", "flag listen")
    assert rows["workers.0.vram"][0] == "24GB"
    assert rows["models.llama3.1:8b.num_ctx"][0] == "16384"
    empty = {row.key: row for row in settings_rows(load_settings(None, environment={}, overrides={"admin": "off"}))}
    assert empty["admin"].value == "off"
    assert empty["headroom"].origin == "default"
    assert {key.path[0] for key in all_keys() if can_be_off(key)} == {"admin", "record"}
