"""How many clients the process's file descriptors allow; the rest stays free for workers, files and the admin listener.

Never fails: where nothing can be learned or raised, what there is is taken for granted.
"""

from bellmare.http.messages import DEFAULT_LIMITS

CONNECTIONS_SHARE = 0.9
"""Of the descriptors: a burst of clients is accepted in one go before the first of it can be refused."""
OWN_RESERVE = 40
"""Interpreter, event loop, listeners, log, event log, admin clients: 20 in use at rest (measured), and room."""
WORKER_RESERVE = 8
"""Per worker: observations, loads, and requests that are under way while clients hold everything else."""
CONNECTIONS_MIN = 8
"""With fewer nothing could be served at all; then descriptors may run out, and accepting pauses."""


def raise_limit() -> int | None:
    """Raise the soft limit on open descriptors to the hard one, where possible; what it is now. None: unlimited."""
    try:
        import resource
    except ImportError:  # Windows counts no descriptors
        return None
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            soft = hard
        except (OSError, ValueError):  # macOS refuses more than its kernel's own bound
            pass
    return None if soft == resource.RLIM_INFINITY else soft


def connections_max(descriptors: int | None, workers: int) -> int:
    """Client connections that may be open at once, given the limit on descriptors and the number of workers."""
    wanted = DEFAULT_LIMITS.connections_max
    if descriptors is None:
        return wanted
    reserve = min(OWN_RESERVE + WORKER_RESERVE * workers, descriptors // 2)
    return max(CONNECTIONS_MIN, min(wanted, int(CONNECTIONS_SHARE * descriptors) - reserve))
