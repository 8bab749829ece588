"""A pure model of one stock Ollama server with its GPU, disk and host memory: time and inputs in, effects out.

``config`` says what the machine and the models are, ``messages`` what it can be told and what it answers, ``shape``
and ``memory`` what a runner needs, ``loading`` how long a load takes, ``runner`` one llama-server process,
``scheduler`` Ollama's two loops, and ``server.Twin`` ties them to a clock that is an argument. The specification is
docs/reference/ollama.md; section numbers in this package mean its sections. Driven in wall time by ``workers.sim``
and in virtual time by ``sim``, so both are checked by one model.
"""
