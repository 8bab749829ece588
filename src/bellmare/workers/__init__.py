"""Adapters to what runs models: one port (``port``), one wire (``ollama``), three kinds behind one contract suite.

``sim`` and ``embedded`` are servers that speak Ollama's API; the gateway reaches all kinds through the same adapter.
"""
