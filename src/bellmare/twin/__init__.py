"""A pure model of one Ollama server and its GPU, disk and host memory. Time and requests in, effects out."""
