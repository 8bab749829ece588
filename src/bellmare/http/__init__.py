"""HTTP/1.1 on asyncio protocols (uvloop, httptools): server, client pool, limits, flow control. Knows no LLM."""
