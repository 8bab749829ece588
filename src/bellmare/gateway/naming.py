"""Which model a request is for: aliases, fallbacks, names of ollama.com's models, and what a model can do at all."""

from collections.abc import Callable, Mapping

import msgspec

from bellmare.core.events import RequestKind
from bellmare.gateway.errands.errand import Errand, without_thinking
from bellmare.protocols import ollama
from bellmare.protocols.errors import InvalidRequest
from bellmare.protocols.names import full_name

COMPLETION, TOOLS, INSERT, THINKING = "completion", "tools", "insert", "thinking"
"""Ollama's words for what a model can do (ollama.md 1.4)."""

Classes = Callable[[str, int], tuple[str, int] | None]
"""For a canonical name and a client's num_ctx: what the core is asked for, and its context; None if nobody has it."""

Abilities = Callable[[str], frozenset[str] | None]
"""What the model of a canonical name can do; None if no worker has said."""


class NameRules(msgspec.Struct, frozen=True):
    """What the operator says about names; all canonical."""

    aliases: Mapping[str, str] = {}
    """What clients may call a model. An alias comes before a stored model of the same name."""
    fallbacks: Mapping[str, tuple[str, ...]] = {}
    """Models that answer in another's place while that one cannot be had."""
    cloud: bool = False
    """Whether names of ollama.com's models are passed on to a worker, which passes them on to ollama.com."""


class Naming:
    """Applies the rules to requests, before anything is decided about them."""

    __slots__ = ("_abilities", "_classes", "rules")

    def __init__(self, rules: NameRules, abilities: Abilities, classes: Classes = lambda name, num_ctx: None) -> None:
        self.rules = rules
        self._abilities = abilities
        self._classes = classes

    def meant(self, name: str) -> str:
        """The canonical name of the model that a canonical name stands for."""
        return self.rules.aliases.get(name, name)

    def address(self, errand: Errand) -> Errand:
        """The errand for the model that is meant. Raises :class:`InvalidRequest` if that cannot do what is asked."""
        name, rules = errand.name, self.rules
        if not name:
            if not rules.cloud:
                text = f"'{errand.native.model[:200]}' runs on ollama.com, which this gateway does not use"
                raise InvalidRequest(text, status=403)
            return errand
        if rules.aliases and (meant := rules.aliases.get(name)) is not None:
            errand = errand.for_model(meant)
            name = meant
        if rules.fallbacks and (others := rules.fallbacks.get(name)) is not None:
            errand = msgspec.structs.replace(errand, fallbacks=others)
        if errand.overridden and "num_ctx" in errand.overridden:
            errand = self._in_context(errand, name)
        if errand.kind is RequestKind.embedding or errand.released:
            return errand
        abilities = self._abilities(name)
        if abilities is None or _suits(errand, abilities):
            return errand
        return _adapted(errand, abilities)

    def _in_context(self, errand: Errand, name: str) -> Errand:
        """In the context that comes nearest to what the client said: no client's own reloads a runner."""
        wanted = (errand.native.options or {}).get("num_ctx")
        found = self._classes(name, wanted) if isinstance(wanted, int) else None
        if found is None:
            return errand
        asked, context = found
        overridden = errand.overridden
        if context == wanted:
            overridden = tuple(option for option in overridden if option != "num_ctx")
        return msgspec.structs.replace(
            errand, context=context, context_class=asked if asked != name else "", overridden=overridden
        )


def _suits(errand: Errand, abilities: frozenset[str]) -> bool:
    """Quickly, for what nearly all requests are."""
    native = errand.native
    if COMPLETION not in abilities:
        return False
    if isinstance(native, ollama.ChatRequest):
        return (not native.tools or TOOLS in abilities) and (not native.think or THINKING in abilities)
    if isinstance(native, ollama.GenerateRequest):
        return (not native.suffix or INSERT in abilities) and (not native.think or THINKING in abilities)
    return True


def _adapted(errand: Errand, abilities: frozenset[str]) -> Errand:
    """What can be done about it, as Ollama does it and in its words (ollama.md 1.4): mostly nothing."""
    native = errand.native
    assert isinstance(native, ollama.ChatRequest | ollama.GenerateRequest)
    if native.think and THINKING not in abilities:
        if not errand.thinks_if_it_can:
            raise InvalidRequest(f'"{errand.spelling}" does not support thinking')
        errand = without_thinking(errand)
    chat = isinstance(native, ollama.ChatRequest)
    if COMPLETION not in abilities:
        raise InvalidRequest(f'"{errand.spelling}" does not support {"chat" if chat else "generate"}')
    if isinstance(native, ollama.ChatRequest) and native.tools and TOOLS not in abilities:
        raise InvalidRequest(f"{full_name(errand.name)} does not support tools")
    if isinstance(native, ollama.GenerateRequest) and native.suffix and INSERT not in abilities:
        raise InvalidRequest(f"{full_name(errand.name)} does not support insert")
    return errand
