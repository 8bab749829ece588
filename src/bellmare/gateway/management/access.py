"""Who may change what the fleet stores."""

import ipaddress
from collections.abc import Sequence

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

REFUSED = (
    "pull, push, create, copy, delete and blobs change the models of every worker, and this client may not: "
    "the operator names who may under `manage` in bellmare's settings"
)


class Managers:
    """Clients by address. There are no keys yet."""

    __slots__ = ("_networks",)

    def __init__(self, networks: Sequence[Network] = ()) -> None:
        self._networks = tuple(networks)

    def may(self, peer: str) -> bool:
        """Whether a client at ``peer``, an address without port, has the right."""
        if not self._networks:
            return False
        try:
            address = ipaddress.ip_address(peer.partition("%")[0])
        except ValueError:
            return False
        mapped = getattr(address, "ipv4_mapped", None)
        return any((mapped or address) in network for network in self._networks)
