"""What a browser is told about pages of other origins (ollama.md 1.7): the answer to its question, and one line after.

Who is let in at all is the guard's to say; an origin that it keeps out gets here never.
"""

import functools

from bellmare.http.messages import HeaderLines, Refusal, Request, header_lines

METHODS = b"GET,POST,PUT,PATCH,DELETE,HEAD,OPTIONS"
HEADERS = (
    "Authorization",
    "Content-Type",
    "User-Agent",
    "Accept",
    "X-Requested-With",
    "OpenAI-Beta",
    "x-stainless-arch",
    "x-stainless-async",
    "x-stainless-custom-poll-interval",
    "x-stainless-helper-method",
    "x-stainless-lang",
    "x-stainless-os",
    "x-stainless-package-version",
    "x-stainless-poll-helper",
    "x-stainless-retry-count",
    "x-stainless-runtime",
    "x-stainless-runtime-version",
    "x-stainless-timeout",
    "x-api-key",
    "anthropic-version",
    "anthropic-beta",
    "anthropic-dangerous-direct-browser-access",
    "x-request-id",
    "x-bellmare-priority",
    "x-bellmare-next",
)
"""Ollama's, then those of Anthropic's clients and ours."""
MAX_AGE_S = 43_200
_VARY = b"Origin, Access-Control-Request-Method, Access-Control-Request-Headers"


def preflight(request: Request) -> Refusal | None:
    """The answer to a browser's question, if it is one: asked before a page's request that a form could not make."""
    if request.method != "OPTIONS":
        return None
    origin = request.header(b"origin")
    if origin is None or request.header(b"access-control-request-method") is None:
        return None
    return Refusal(
        status=204,
        headers=(
            (b"access-control-allow-origin", origin),
            (b"access-control-allow-methods", METHODS),
            (b"access-control-allow-headers", ",".join(HEADERS).encode()),
            (b"access-control-max-age", b"%d" % MAX_AGE_S),
            (b"vary", _VARY),
        ),
    )


@functools.lru_cache(maxsize=64)
def lines_for(origin: bytes) -> HeaderLines:
    """What every answer to a page of that origin carries: it may read it, our own headers too."""
    return header_lines(
        [(b"access-control-allow-origin", origin), (b"access-control-expose-headers", b"*"), (b"vary", b"Origin")]
    )
