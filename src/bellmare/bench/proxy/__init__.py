"""`bellmare bench proxy`: the gateway beside nginx, HAProxy and Caddy on the same work, in the same rounds.

Three kinds of processes, all ours and all on loopback: ``upstream`` (a fake Ollama), ``load`` (one per measurement) and
the proxies between them. This package starts, measures and ends them; it knows nothing of what the gateway does inside.
"""
