"""bellmare: the gateway in front of a fleet of stock Ollama servers."""

__version__ = "0.1.0"
