"""One engine process: loads one GGUF file, serves it on a loopback port, and never outlives its parent.

Standard output carries exactly one JSON line, ``{"address": …}`` or ``{"error": …}``; what the engine prints goes to
standard error. The process ends when its standard input closes or, on Linux, when its parent dies. A crash of the
engine's C++ code ends this process and nothing else: that is why it exists.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import secrets
import signal
import sys
import threading
from typing import Any, NoReturn

NOT_INSTALLED = "the embedded engine is not installed: pip install 'bellmare[embedded]'"

_PR_SET_PDEATHSIG = 1
_HTTP_THREADS_EXTRA = 4
"""Each open connection holds a thread, those of aborted calls for a moment longer."""


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """``num_ctx`` is per slot, in tokens."""
    parser = argparse.ArgumentParser(prog="python -m bellmare.workers.embedded.child", description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--num-ctx", type=int, required=True)
    parser.add_argument("--parallel", type=int, default=1)
    parser.add_argument("--threads", type=int, default=0, help="0: the engine's own choice")
    parser.add_argument("--no-shift", action="store_true", help="end at the context's end instead of shifting it")
    parser.add_argument("--embeddings", action="store_true", help="for a model with a pooling type")
    parser.add_argument("--parent", type=int, default=0, help="process id of the parent; 0: not checked")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run until standard input closes. Exit status: 0 asked to leave, 1 the model did not load."""
    options = parse_arguments(arguments)
    answer_fd = os.dup(1)
    os.dup2(2, 1)
    _end_with_parent(options.parent)
    threading.Thread(target=_end_with_standard_input, daemon=True).start()
    try:
        engine, address = _start_engine(options)
    except ImportError:
        _answer(answer_fd, {"error": NOT_INSTALLED})
        os._exit(1)
    except Exception as error:  # noqa: BLE001 - this is where the process ends; the engine raises many types
        _answer(answer_fd, {"error": str(error)})
        os._exit(1)
    _answer(answer_fd, {"address": address})
    os.close(answer_fd)
    threading.Event().wait()
    raise AssertionError(f"unreachable, and the engine stays referenced: {engine}")


def _end_with_parent(parent: int) -> None:
    """Ask the kernel to kill us when the parent dies. Elsewhere than on Linux the closing pipe has to do."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if parent and os.getppid() != parent:
        os._exit(1)  # it died before the line above took effect


def _end_with_standard_input() -> None:
    """No clean-up: the memory goes back with the process, and unloading in C++ takes longer than dying."""
    while os.read(0, 4096):
        pass
    os._exit(0)


def _start_engine(options: argparse.Namespace) -> tuple[Any, str]:
    """The running server and its address ``http://127.0.0.1:port/secret``. Blocks for the whole load."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = options.model
    params.n_parallel = options.parallel
    params.n_ctx = options.num_ctx * options.parallel
    params.kv_unified = False  # slots are separate and each gets num_ctx, as under Ollama
    params.n_threads_http = 2 * options.parallel + _HTTP_THREADS_EXTRA
    params.fit_params = False  # the shape is ours: the engine must not shrink the context to fit
    params.cache_ram_mib = 0  # its default keeps up to 8 GiB of old prompts in host memory, outside our budget
    params.ctx_shift = not options.no_shift
    if options.embeddings:
        params.embedding = True
        params.n_batch = params.n_ubatch = options.num_ctx  # an input is embedded in one batch
    params.ui = False
    # Without keys and with open CORS, the path is what keeps other users and web pages of this machine out.
    params.api_prefix = "/" + secrets.token_hex(16)
    params.port = 0
    params.hostnames = ["127.0.0.1"]
    if options.threads:
        params.cpuparams.n_threads = options.threads
        params.cpuparams_batch.n_threads = options.threads
    engine = xllamacpp.Server(params)
    return engine, engine.listening_address + params.api_prefix


def _answer(answer_fd: int, message: dict[str, str]) -> None:
    os.write(answer_fd, json.dumps(message).encode() + b"\n")


if __name__ == "__main__":
    main()
