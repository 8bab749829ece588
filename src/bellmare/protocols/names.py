"""Model names: one canonical key per model, so that access lists, routing and metrics mean the same (ollama.md 6.2)."""

import difflib
import functools
import heapq
import itertools
import re
from collections.abc import Iterable

import msgspec

from bellmare.protocols.errors import InvalidRequest

DEFAULT_HOST = "registry.ollama.ai"
DEFAULT_NAMESPACE = "library"
DEFAULT_TAG = "latest"

KEPT_PREFIX = "bellmare-kept/"
"""Namespace of the names that a gateway gives to versions which are about to leave (gateway/management/keeping)."""

_NAME_CHARS_MAX = 8 + 350 + 3 * 81
"""The longest valid name: scheme, host, namespace, model and tag with their separators."""

_HOST = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:-]{0,349}")
_NAMESPACE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,79}")
_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,79}")
"""Model and tag. ``@`` is in none of them: Ollama has no pinning by digest."""

_REMEMBERED_MAX = 1024
"""Names of which :func:`named` remembers what they mean; a fleet has hundreds."""

_SCHEMES = ("https://", "http://")


def _split(text: str) -> tuple[str, str, str, str]:
    """Host, namespace, model and tag of a valid name, with defaults, in the case in which they were written."""
    text = text.strip()
    if not text:
        raise InvalidRequest("model is required")
    invalid = InvalidRequest("invalid model name")
    if len(text) > _NAME_CHARS_MAX:
        raise invalid
    scheme = next((scheme for scheme in _SCHEMES if text.lower().startswith(scheme)), "")
    path, tag = text[len(scheme) :], DEFAULT_TAG
    if path.rfind(":") > path.rfind("/"):
        path, _, tag = path.rpartition(":")
    parts = path.split("/")
    if len(parts) > 3 or (scheme and len(parts) != 3):
        raise invalid
    host, namespace, model = (DEFAULT_HOST, DEFAULT_NAMESPACE)[: 3 - len(parts)] + tuple(parts)
    if not (_HOST.fullmatch(host) and _NAMESPACE.fullmatch(namespace)):
        raise invalid
    if not (_PART.fullmatch(model) and _PART.fullmatch(tag)):
        raise invalid
    return host, namespace, model, tag


def _join(name: tuple[str, str, str, str]) -> str:
    host, namespace, model, tag = name
    if host.lower() != DEFAULT_HOST:
        return f"{host}/{namespace}/{model}:{tag}"
    if namespace.lower() != DEFAULT_NAMESPACE:
        return f"{namespace}/{model}:{tag}"
    return f"{model}:{tag}"


def canonical_name(text: str) -> str:
    """The key of a model: lower case, tag always there, ``registry.ollama.ai/`` and ``library/`` left out.

    Raises :class:`InvalidRequest` in Ollama's words. ``http://`` and ``https://`` are taken off, because Ollama
    finds the same manifest with and without; any other scheme is invalid. Non-ASCII is refused before it is
    lower-cased (the Kelvin sign would become a k). Clients' ``:local`` is taken off by :func:`local_name` before.
    """
    return _join(_split(text)).lower()


def display_name(text: str) -> str:
    """As Ollama prints it: default host and ``library/`` left out, the tag always shown, the case kept."""
    return _join(_split(text))


def full_name(canonical: str) -> str:
    """With host and namespace, as Ollama writes it in texts about what a model cannot do (ollama.md 1.4)."""
    host, namespace, model, tag = _split(canonical)
    return f"{host}/{namespace}/{model}:{tag}"


def local_name(text: str) -> str:
    """Without the suffix ``:local``, by which clients say that they do not mean ollama.com's model of that name.

    Raises :class:`InvalidRequest` if it says both.
    """
    base, colon, suffix = text.strip().rpartition(":")
    if not colon or suffix.strip().casefold() != "local":
        return text
    if is_cloud_name(base) or base.strip().casefold().endswith(":local"):
        raise InvalidRequest("use either :local or :cloud, not both")
    return base


def is_cloud_name(text: str) -> bool:
    """Whether Ollama would send the request to ollama.com: ``m:cloud``, ``m:8b-cloud``, ``m:8b:cloud`` (ollama.md 1.9).

    Ask before :func:`canonical_name`, which refuses the last form. A model called ``my-cloud`` is not one.
    """
    _, colon, suffix = text.strip().rpartition(":")
    suffix = suffix.strip().casefold()
    return bool(colon) and "/" not in suffix and (suffix == "cloud" or suffix.endswith("-cloud"))


class Named(msgspec.Struct, frozen=True):
    """What a client's spelling of a model means."""

    canonical: str
    """See :func:`canonical_name`; empty for a cloud name."""
    spelling: str
    """How answers and requests to workers write it: as the client did, but without a scheme. Empty for a cloud name."""
    cloud: bool
    """See :func:`is_cloud_name`."""


_remembered: dict[str, Named] = {}
"""The newest ``_REMEMBERED_MAX`` valid names: a pure function's results, so that a name is taken apart once."""


def named(text: str) -> Named:
    """All of it at once, and at once for a name met before. Raises :class:`InvalidRequest`."""
    known = _remembered.get(text)
    if known is not None:
        return known
    if is_cloud_name(text):
        return Named(canonical="", spelling="", cloud=True)
    name = canonical_name(local_name(text))
    found = Named(canonical=name, spelling=text if "://" not in text else name, cloud=False)
    if len(text) <= _NAME_CHARS_MAX:  # blanks around it may be many
        _remembered[text] = found
        if len(_remembered) > _REMEMBERED_MAX:
            del _remembered[next(iter(_remembered))]
    return found


_CLOSE_RATIO = 0.6
KNOWN_NAMES_MAX = 2000
"""Names past this number are not looked at."""
COMPARED_MAX = 24
"""Names that are compared letter by letter: a pair takes 25 us, one of long names 0.5 ms (measured)."""


@functools.lru_cache(maxsize=2 * KNOWN_NAMES_MAX)
def _parts(known: str) -> tuple[str, str, frozenset[str]]:
    """Model, tag and pairs of letters of a name that a worker stores; never of a client's."""
    model, _, tag = known.rpartition(":")
    return model, tag, _pairs(model)


def _pairs(model: str) -> frozenset[str]:
    return frozenset(map("".join, itertools.pairwise(model)))


class _Wanted:
    """A canonical name that nobody stores, compared with those that somebody does."""

    def __init__(self, name: str) -> None:
        self.model, _, self.tag = name.rpartition(":")
        self._pairs = _pairs(self.model)
        self._last = self.model.rpartition("/")[2]
        self._matcher = difflib.SequenceMatcher(None, "", self.model)

    def _alike(self, model: str) -> float:
        """By how it begins or ends; 0: it does neither as the wanted one does."""
        wanted = self.model
        if model == wanted:
            return 0.9
        if model.startswith(wanted) or wanted.startswith(model):
            return 0.7 + 0.2 * min(len(model), len(wanted)) / max(len(model), len(wanted))
        return 0.8 if model.rpartition("/")[2] == self._last else 0.0

    def guess(self, known: str) -> float:
        """About how close, in a microsecond or two."""
        model, tag, pairs = _parts(known)
        common = 2 * len(pairs & self._pairs) / (len(pairs) + len(self._pairs) or 1)
        return max(common, self._alike(model)) + 0.01 * (tag == self.tag)

    def closeness(self, known: str) -> float:
        """0 to 1. The model counts more than the tag, and a name that begins like the wanted one more than a typo.

        The tag ``latest`` counts for nothing: most often it was not written.
        """
        model, tag, _ = _parts(known)
        if model == self.model:
            latest = self.tag == DEFAULT_TAG
            return 0.9 + (0 if latest else 0.1 * difflib.SequenceMatcher(None, tag, self.tag).ratio())
        matcher = self._matcher
        matcher.set_seq1(model)
        score = matcher.ratio() if matcher.real_quick_ratio() >= _CLOSE_RATIO else 0.0
        return max(score, self._alike(model)) + 0.01 * (tag == self.tag)


def close_names(name: str, known: Iterable[str], *, most: int = 3) -> list[str]:
    """Names of ``known`` (canonical) that ``name`` may have meant, best first, then shortest; for the text of a 404."""
    try:
        wanted = _Wanted(canonical_name(name))
    except InvalidRequest:
        return []
    candidates = list(itertools.islice(known, KNOWN_NAMES_MAX))
    if len(candidates) > COMPARED_MAX:
        candidates = heapq.nlargest(COMPARED_MAX, candidates, key=wanted.guess)
    scored = []
    for candidate in candidates:
        score = wanted.closeness(candidate)
        if score >= _CLOSE_RATIO and candidate != f"{wanted.model}:{wanted.tag}":
            scored.append((-score, len(candidate), candidate))
    return [candidate for _, _, candidate in sorted(scored)[:most]]
