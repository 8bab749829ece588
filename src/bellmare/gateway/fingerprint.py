"""A short word for the content of a request, equal for equal requests: what the core calls poison by.

Made with a secret of this process, so that nobody can tell from an event log what was asked, nor make two requests look
alike. Made only when a runner has died or something is suspected: most requests never have one.
"""

import secrets
from hashlib import blake2b

from bellmare.gateway.errands.errand import Errand
from bellmare.protocols.ollama import encode_for_worker

FINGERPRINT_BYTES = 9
HASHED_BYTES_MAX = 1 << 20
"""Of a longer body only its length and both ends are looked at: a millisecond on the loop is enough."""
_SECRET = secrets.token_bytes(32)


def fingerprint(errand: Errand) -> str:
    """18 hex digits over path, model and what a worker would be sent: the client's own spelling does not matter."""
    body = encode_for_worker(errand.native, model=errand.name, num_ctx=1)
    found = blake2b(key=_SECRET, digest_size=FINGERPRINT_BYTES)
    found.update(f"{errand.upstream_path} {len(body)} ".encode())
    if len(body) > HASHED_BYTES_MAX:
        half = HASHED_BYTES_MAX // 2
        found.update(body[:half])
        body = body[-half:]
    found.update(body)
    return found.hexdigest()
