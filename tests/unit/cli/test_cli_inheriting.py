"""Inherited sockets are what was said, ours alone, and in no child's environment."""

from __future__ import annotations

import os
import socket

import pytest

from bellmare.cli import inheriting
from bellmare.cli.inheriting import HANDED, BadInheritance, check_inherited, handed_text, take_inherited
from bellmare.settings.addresses import Address


def listening() -> socket.socket:
    return socket.create_server(("127.0.0.1", 0))


def copy(sock: socket.socket) -> int:
    """A descriptor of its own, inheritable as those that come through exec."""
    number = os.dup(sock.fileno())
    os.set_inheritable(number, True)
    return number


def test_without_variables_nothing_is_inherited() -> None:
    found = take_inherited({})
    assert (found.gateway, found.admin, found.talk) == ([], [], None)


def test_what_is_handed_over_is_taken_out_of_the_environment_and_kept_from_children() -> None:
    ours, theirs = socket.socketpair()
    with listening() as data, listening() as admin, ours, theirs:
        numbers = [copy(sock) for sock in (data, admin, theirs)]
        environment = {HANDED: handed_text([numbers[0]], [numbers[1]], numbers[2]), "HOME": "/"}
        found = take_inherited(environment)
        assert environment == {"HOME": "/"}
        assert [sock.getsockname() for sock in (*found.gateway, *found.admin)] == [
            data.getsockname(),
            admin.getsockname(),
        ]
        assert not any(os.get_inheritable(number) for number in numbers)
        assert found.talk is not None
        theirs.close()
        found.close_talk()
        assert ours.recv(1) == b"", "the other side hears the end"
        for sock in (*found.gateway, *found.admin):
            sock.close()


def test_sockets_of_another_process_are_not_ours() -> None:
    environment = {"LISTEN_FDS": "1", "LISTEN_PID": "1", "LISTEN_FDNAMES": "gateway"}
    assert take_inherited(environment).gateway == []
    assert environment == {}, "nor a child's"


@pytest.mark.parametrize(
    ("names", "expected"),
    [("", ("gateway", "admin")), ("unit:unit", ("gateway", "admin")), ("admin:gateway", ("admin", "gateway"))],
)
def test_systemd_sockets_are_told_apart_by_name_else_by_order(
    names: str, expected: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with listening() as one, listening() as other:
        first = copy(one)
        os.dup2(other.fileno(), first + 1)
        monkeypatch.setattr(inheriting, "FIRST_FD", first)
        found = take_inherited({"LISTEN_FDS": "2", "LISTEN_PID": "7", "LISTEN_FDNAMES": names}, pid=7)
        where = {"gateway": found.gateway, "admin": found.admin}
        assert [where[purpose][0].getsockname() for purpose in expected] == [one.getsockname(), other.getsockname()]
        for sock in (*found.gateway, *found.admin):
            sock.close()


@pytest.mark.parametrize(
    "environment",
    [
        {HANDED: "gateway"},
        {HANDED: "nonsense=3"},
        {HANDED: "gateway=9999"},
        {"LISTEN_FDS": "many", "LISTEN_PID": "7"},
        {"LISTEN_FDS": "99", "LISTEN_PID": "7"},
        {"LISTEN_FDS": "1", "LISTEN_PID": "7", "LISTEN_FDNAMES": "admin:gateway:x"},
    ],
)
def test_nonsense_is_refused(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inheriting, "FIRST_FD", 9000)
    with pytest.raises(BadInheritance):
        take_inherited(environment, pid=7)


def test_a_socket_that_does_not_listen_is_refused() -> None:
    with socket.socket() as idle:
        idle.bind(("127.0.0.1", 0))
        number = copy(idle)
        with pytest.raises(BadInheritance, match="no listening stream socket"):
            take_inherited({HANDED: f"gateway={number}"})


def test_an_inherited_socket_is_where_the_settings_say() -> None:
    with listening() as sock:
        port = sock.getsockname()[1]
        check_inherited([sock], Address("127.0.0.1", port), insecure=False)
        check_inherited([sock], Address("127.0.0.1", 0), insecure=False)
        with pytest.raises(BadInheritance, match="wants a stop and a start"):
            check_inherited([sock], Address("127.0.0.1", port + 1), insecure=False)
    with socket.create_server(("0.0.0.0", 0)) as open_to_all:
        with pytest.raises(BadInheritance, match="insecure"):
            check_inherited([open_to_all], Address("127.0.0.1", 0), insecure=False)
        check_inherited([open_to_all], Address("127.0.0.1", 0), insecure=True)
