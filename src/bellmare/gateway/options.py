"""What the operator's settings mean to the data plane: one value, replaced as a whole when they change."""

import ipaddress

import msgspec

from bellmare.core.units import SpanUs
from bellmare.gateway.conversation import GatewayTimeouts
from bellmare.gateway.judging import ContextRules, Differs, Policy
from bellmare.gateway.management.access import Network
from bellmare.gateway.naming import NameRules
from bellmare.protocols.names import canonical_name
from bellmare.settings import Settings
from bellmare.settings.model import ContextOverride


class GatewayOptions(msgspec.Struct, frozen=True):
    """Defaults are those of the settings."""

    timeouts: GatewayTimeouts = GatewayTimeouts()
    body_bytes_max: int = 64 << 20
    names: NameRules = NameRules()
    heartbeat_us: SpanUs = SpanUs(0)
    """After so long without a word a waiting stream hears something; zero: nothing."""
    origins: tuple[str, ...] = ()
    """Of web pages that may use it, beside those that Ollama lets in."""
    managers: tuple[Network, ...] = ()
    """Clients that may change what the fleet stores."""
    context: ContextRules = ContextRules()


def options_of(settings: Settings) -> GatewayOptions:
    """From validated settings."""
    limits = settings.limits
    return GatewayOptions(
        timeouts=GatewayTimeouts(
            queue_s=settings.queue.timeout_us / 1e6,
            first_token_s=limits.first_token_timeout_us / 1e6,
            token_s=limits.token_timeout_us / 1e6,
            answer_s=limits.answer_timeout_us / 1e6,
        ),
        body_bytes_max=limits.body_bytes,
        names=_names(settings),
        heartbeat_us=settings.queue.heartbeat_us,
        origins=settings.origins,
        managers=tuple(ipaddress.ip_network(text, strict=False) for text in settings.manage),
        context=_context(settings),
    )


def _names(settings: Settings) -> NameRules:
    aliases: dict[str, str] = {}
    fallbacks: dict[str, tuple[str, ...]] = {}
    for name, model in settings.models.items():
        canonical = canonical_name(name)
        aliases.update((canonical_name(alias), canonical) for alias in model.aliases)
        if model.fallbacks:
            fallbacks[canonical] = tuple(map(canonical_name, model.fallbacks))
    return NameRules(aliases=aliases, fallbacks=fallbacks, cloud=settings.cloud)


def _context(settings: Settings) -> ContextRules:
    said, tenants = settings.context, settings.tenants.items()
    return ContextRules(
        usual=Policy(said.policy, said.at, said.otherwise),
        models={
            canonical_name(name): _differs(model.context)
            for name, model in settings.models.items()
            if model.context != _SAME
        },
        tenants={name: _differs(tenant.context) for name, tenant in tenants if tenant.context != _SAME},
    )


_SAME = ContextOverride()


def _differs(said: ContextOverride) -> Differs:
    return Differs(said.policy, said.at, said.otherwise)
