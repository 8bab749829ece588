"""What is measured: each proxy's command and configuration, as its own documentation says for streaming upstreams.

Every one is a single process (HAProxy, Caddy: a single thread) that keeps connections to the upstream, passes chunks on
at once and logs no requests; bellmare alone runs with everything on: log, event log, metrics, shadows, default policy.
"""

import os
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import bellmare
from bellmare.bench.proxy.wire import SLOTS

DIRECT = "direct"
NAMES = ("bellmare", "nginx", "haproxy", "caddy", DIRECT)
VERSION_TIMEOUT_S = 10.0
KEPT_MAX = 4096
"""Idle connections that a proxy may keep to the upstream: more than ever run at once."""
CLIENTS_MAX = 9000
"""Connections that a proxy may take: 5,000 idle ones, with room."""
DESCRIPTORS_SPARE = 200


@dataclass(slots=True, frozen=True)
class Place:
    """Where a proxy runs: its own folder, its port, a second one if it wants one, and the upstream's."""

    folder: Path
    port: int
    second_port: int
    upstream_port: int


@dataclass(slots=True, frozen=True)
class Subject:
    """One proxy. ``prepare`` writes what it needs into the folder and returns its command."""

    name: str
    program: str
    version: str
    prepare: Callable[["Subject", Place], list[str]]


def _bellmare(subject: Subject, place: Place) -> list[str]:
    config = place.folder / "bellmare.yaml"
    config.write_text(
        f"listen: 127.0.0.1:{place.port}\nadmin: 127.0.0.1:{place.second_port}\n"
        f"workers:\n  - {{url: 'http://127.0.0.1:{place.upstream_port}', name: bench, vram: 1TiB, parallel: {SLOTS}, "
        f"max_loaded: 0}}\n"
    )
    return [subject.program, "-m", "bellmare", "serve", "--config", str(config), "--quiet"]


def profiled(place: Place, command: list[str]) -> list[str]:
    """bellmare's command under cProfile; the figures go to ``profile`` in its folder when it ends."""
    program, _, _, *arguments = command
    return [program, "-m", "cProfile", "-o", str(place.folder / "profile"), "-m", "bellmare", *arguments]


def _clients_max() -> int:
    """HAProxy refuses to start without two descriptors for each."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return min(CLIENTS_MAX, (limit - DESCRIPTORS_SPARE) // 2)


def _nginx(subject: Subject, place: Place) -> list[str]:
    folder = place.folder
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    paths = "".join(f"  {kind}_temp_path {folder}/{kind};\n" for kind in kinds)
    config = folder / "nginx.conf"
    config.write_text(
        f"daemon off;\nmaster_process off;\nworker_processes 1;\npid {folder}/nginx.pid;\n"
        f"error_log {folder}/error.log error;\n"
        f"events {{ worker_connections {2 * _clients_max()}; }}\n"
        f"http {{\n{paths}"
        "  access_log off;\n  client_body_buffer_size 16k;\n"
        "  keepalive_timeout 300s;\n  keepalive_requests 1000000000;\n"
        "  upstream worker {\n"
        f"    server 127.0.0.1:{place.upstream_port};\n"
        f"    keepalive {KEPT_MAX};\n    keepalive_requests 1000000000;\n    keepalive_timeout 300s;\n  }}\n"
        f"  server {{\n    listen 127.0.0.1:{place.port} backlog=4096;\n"
        "    location / {\n      proxy_pass http://worker;\n      proxy_http_version 1.1;\n"
        '      proxy_set_header Connection "";\n      proxy_buffering off;\n      proxy_read_timeout 300s;\n'
        "    }\n  }\n}\n"
    )
    return [subject.program, "-p", str(folder), "-e", str(folder / "error.log"), "-c", str(config)]


def _haproxy(subject: Subject, place: Place) -> list[str]:
    config = place.folder / "haproxy.cfg"
    config.write_text(
        f"global\n  maxconn {_clients_max()}\n  nbthread 1\n"
        "defaults\n  mode http\n  timeout connect 5s\n  timeout client 300s\n  timeout server 300s\n"
        "  timeout http-keep-alive 300s\n  option http-no-delay\n  option abortonclose\n  http-reuse always\n"
        f"frontend clients\n  bind 127.0.0.1:{place.port} backlog 4096\n  default_backend worker\n"
        f"backend worker\n  server worker 127.0.0.1:{place.upstream_port} pool-max-conn -1 pool-purge-delay 300s\n"
    )
    return [subject.program, "-db", "-f", str(config)]


def _caddy(subject: Subject, place: Place) -> list[str]:
    config = place.folder / "Caddyfile"
    config.write_text(
        "{\n  admin off\n  auto_https off\n  log {\n    level ERROR\n  }\n}\n"
        f"http://:{place.port} {{\n  bind 127.0.0.1\n  reverse_proxy 127.0.0.1:{place.upstream_port} {{\n"
        "    flush_interval -1\n    transport http {\n      keepalive 300s\n"
        f"      keepalive_idle_conns {KEPT_MAX}\n      keepalive_idle_conns_per_host {KEPT_MAX}\n"
        "    }\n  }\n}\n"
    )
    return [subject.program, "run", "--config", str(config), "--adapter", "caddyfile"]


_PREPARE: dict[str, Callable[[Subject, Place], list[str]]] = {
    "bellmare": _bellmare,
    "nginx": _nginx,
    "haproxy": _haproxy,
    "caddy": _caddy,
    DIRECT: lambda _subject, _place: [],
}
_ASK_VERSION = {"nginx": "-v", "haproxy": "-v", "caddy": "version"}


def find(name: str) -> Subject | None:
    """The subject of this name as installed here; None if it is not."""
    prepare = prepare_of(name)
    if name == "bellmare":
        return Subject(name, sys.executable, bellmare.__version__, prepare)
    if name == DIRECT:
        return Subject(name, "", "", prepare)
    program = shutil.which(name, path=os.environ.get("PATH", os.defpath) + ":/usr/sbin:/usr/local/sbin")
    if program is None:
        return None
    command = [program, _ASK_VERSION[name]]
    try:
        told = subprocess.run(command, capture_output=True, text=True, timeout=VERSION_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    found = re.search(r"\d+\.\d+[\w.+-]*", told.stdout + told.stderr)
    return Subject(name, program, found[0] if found else "?", prepare)


def prepare_of(name: str) -> Callable[[Subject, Place], list[str]]:
    """What writes the configuration of a proxy of this name."""
    return _PREPARE[name]
