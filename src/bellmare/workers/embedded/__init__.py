"""An Ollama-compatible worker over the real llama.cpp engine, one child process per loaded model. Demo quality.

``server`` listens and ``app`` speaks Ollama's wire; ``engine`` decides what is loaded and never evicts by itself;
``process`` holds one child (``child``), whose crash is an error to the clients of one model and nothing more.
``catalogue`` names the GGUF files of a folder and ``gguf_header`` reads them; ``fetch`` brings the default model;
``completion`` translates between the two wires.
"""
