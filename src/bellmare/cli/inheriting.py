"""Listening sockets that another process opened: systemd (LISTEN_FDS), or the gateway that this one takes over from.

The variables are taken out of the environment, and the descriptors closed on exec: a child of ours must have neither.
"""

import os
import socket
from collections.abc import MutableMapping
from dataclasses import dataclass, field

from bellmare.settings.addresses import Address, is_loopback

HANDED = "BELLMARE_HANDED_FDS"
"""Set by the process that hands over: ``gateway=7,admin=8,talk=9``."""
FIRST_FD = 3
"""Of systemd's (sd_listen_fds(3))."""
FDS_MAX = 16
GATEWAY, ADMIN, TALK = "gateway", "admin", "talk"


class BadInheritance(OSError):  # noqa: N818 - of the world, not of ours
    """What was inherited is not what was said."""


@dataclass(slots=True)
class Inherited:
    """Sockets by purpose; empty without any."""

    gateway: list[socket.socket] = field(default_factory=list)
    admin: list[socket.socket] = field(default_factory=list)
    talk: socket.socket | None = None
    """To the process that hands over; None if nobody does."""

    def close_talk(self) -> None:
        """Let the other process see that this one will not take over. May be called twice."""
        if self.talk is not None:
            self.talk.close()


def take_inherited(environment: MutableMapping[str, str], *, pid: int | None = None) -> Inherited:
    """What ``environment`` says was inherited. Raises BadInheritance.

    systemd's sockets are told apart by ``FileDescriptorName=``: ``gateway`` and ``admin``; without such names the
    first is the gateway's, the second the admin's. ``LISTEN_PID`` must be ours.
    """
    handed = environment.pop(HANDED, "")
    count, owner = environment.pop("LISTEN_FDS", ""), environment.pop("LISTEN_PID", "")
    names = environment.pop("LISTEN_FDNAMES", "").split(":")
    if handed:
        places = [_place(part) for part in handed.split(",")]
    elif count and owner == str(os.getpid() if pid is None else pid):
        if not count.isdecimal() or int(count) > FDS_MAX:
            raise BadInheritance(f"LISTEN_FDS is {count!r}; a number up to {FDS_MAX} is expected")
        places = [(_purpose(names, number), FIRST_FD + number) for number in range(int(count))]
    else:
        return Inherited()
    found = Inherited()
    for purpose, descriptor in places:
        sock = _socket(descriptor, purpose)
        if purpose == TALK:
            found.talk = sock
        else:
            (found.admin if purpose == ADMIN else found.gateway).append(sock)
    return found


def check_inherited(socks: list[socket.socket], address: Address, *, insecure: bool) -> None:
    """Whether the sockets are what the settings ask for. Raises BadInheritance: a moved address is no small thing."""
    for sock in socks:
        name = sock.getsockname()
        if not isinstance(name, tuple):
            raise BadInheritance(f"the inherited socket is at {name!r}")
        host, port = str(name[0]), int(name[1])
        if address.port not in (0, port):
            raise BadInheritance(f"the inherited socket is at {host}:{port}; a new address wants a stop and a start")
        if not insecure and not is_loopback(host):
            raise BadInheritance(f"the inherited socket at {host}:{port} is not on loopback; say `insecure: true`")


def handed_text(gateway: list[int], admin: list[int], talk: int) -> str:
    """The value of ``HANDED`` for these descriptors."""
    named = [(GATEWAY, fd) for fd in gateway] + [(ADMIN, fd) for fd in admin] + [(TALK, talk)]
    return ",".join(f"{purpose}={descriptor}" for purpose, descriptor in named)


def _place(part: str) -> tuple[str, int]:
    purpose, _, number = part.partition("=")
    if purpose not in (GATEWAY, ADMIN, TALK) or not number.isdecimal():
        raise BadInheritance(f"{HANDED} says {part!r}")
    return purpose, int(number)


def _purpose(names: list[str], number: int) -> str:
    if {GATEWAY, ADMIN} & set(names):
        said = names[number] if number < len(names) else ""
        if said not in (GATEWAY, ADMIN):
            raise BadInheritance(f"a socket is called {said!r}; `gateway` and `admin` are known")
        return said
    return ADMIN if number == 1 else GATEWAY


def _socket(descriptor: int, purpose: str) -> socket.socket:
    try:
        os.set_inheritable(descriptor, False)
        sock = socket.socket(fileno=descriptor)
    except OSError as error:
        raise BadInheritance(f"descriptor {descriptor} for {purpose}: {error.strerror}") from error
    sock.setblocking(False)
    listening = sock.type == socket.SOCK_STREAM and (
        purpose == TALK or sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    )
    if not listening:
        raise BadInheritance(f"descriptor {descriptor} for {purpose} is no listening stream socket")
    return sock
