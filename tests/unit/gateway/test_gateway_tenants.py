"""Who asks: the same client has the same name, and no name tells a key."""

from __future__ import annotations

import pytest

from bellmare.core.events import Priority
from bellmare.gateway.tenants import Tenants, priority_of
from bellmare.http.messages import Request
from bellmare.protocols.errors import InvalidRequest

KEY = b"Bearer sk-very-secret"


def asked(*headers: tuple[bytes, bytes], peer: str = "198.51.100.4") -> Request:
    return Request("POST", "/api/chat", headers=list(headers), peer=peer)


def test_the_same_key_is_the_same_tenant_from_any_address() -> None:
    tenants = Tenants({}, b"s" * 32)
    names = {tenants.of(asked((b"authorization", KEY), peer=peer)) for peer in ("198.51.100.4", "::1", "")}
    assert len(names) == 1
    assert tenants.of(asked((b"authorization", b"Bearer other"))) not in names
    assert tenants.of(asked((b"x-api-key", KEY))) in names


def test_without_a_key_a_client_is_its_address() -> None:
    tenants = Tenants({}, b"s" * 32)
    assert tenants.of(asked()) == tenants.of(asked((b"authorization", b""))) == tenants.of(asked())
    assert tenants.of(asked()) != tenants.of(asked(peer="198.51.100.5"))
    assert tenants.of(asked()) != tenants.of(asked((b"x-api-key", b"198.51.100.4")))


def test_a_pseudonym_is_short_and_tells_nothing_without_the_secret_of_this_process() -> None:
    here, there = Tenants({}), Tenants({})
    name = here.of(asked((b"authorization", KEY)))
    assert len(name) == 12
    assert int(name, 16) >= 0
    assert name != there.of(asked((b"authorization", KEY)))
    assert name == here.of(asked((b"authorization", KEY)))
    assert "secret" not in repr(here)


def test_an_address_with_a_weight_is_called_by_itself_unless_it_sends_a_key() -> None:
    tenants = Tenants({"198.51.100.4": 2}, b"s" * 32)
    assert tenants.of(asked()) == "198.51.100.4"
    assert len(tenants.of(asked((b"authorization", KEY)))) == 12


@pytest.mark.parametrize("said", [b"high", b"normal", b"low", b" Low ", b"HIGH"])
def test_a_priority_is_named_by_its_header(said: bytes) -> None:
    assert priority_of(asked((b"x-bellmare-priority", said))) == said.decode().strip().lower()


def test_without_the_header_the_priority_is_normal() -> None:
    assert priority_of(asked()) is Priority.normal


@pytest.mark.parametrize("said", [b"", b"urgent", b"1", b"high, low", b"\xff"])
def test_any_other_priority_is_a_bad_request(said: bytes) -> None:
    with pytest.raises(InvalidRequest) as refused:
        priority_of(asked((b"x-bellmare-priority", said)))
    assert refused.value.status == 400
