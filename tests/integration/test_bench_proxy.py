"""`bellmare bench proxy` as a user runs it: the shape of its answer, checked work, and nothing left behind."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bellmare.bench.proxy.processes import tree

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="reads /proc and uses epoll")]

COMMAND = [sys.executable, "-m", "bellmare", "bench", "proxy"]


def test_a_quick_run_measures_without_an_error_and_with_reused_connections(tmp_path: Path) -> None:
    nginx = shutil.which("nginx", path=os.environ.get("PATH", "") + ":/usr/sbin")
    names = ["bellmare", "nginx", "direct"] if nginx else ["bellmare", "direct"]
    done = subprocess.run(
        [*COMMAND, "--quick", "--only", "request", "--proxies", ",".join(names), "--json"],
        capture_output=True, text=True, timeout=100, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    rows = {row["proxy"]: row for row in report["rows"]}
    assert list(rows) == names
    assert [row["errors"] for row in rows.values()] == [0] * len(names), report["notices"]
    for name, row in rows.items():
        assert row["served"] > 100
        assert row["requests_per_s"] > 0
        assert row["upstream_connections"]["request"] <= 64
        assert row["requests_per_upstream_connection"] >= 2
        if name != "direct":
            assert row["version"]
            assert row["cpu_us_per_request"] > 0
    assert rows["direct"]["cpu_us_per_request"] is None
    assert set(report["ratios"]) >= {"request_vs_nginx", "chunk_vs_nginx", "request_vs_caddy", "request_vs_haproxy"}
    assert (report["ratios"]["request_vs_nginx"] is not None) == bool(nginx)
    assert report["ratios"]["request_vs_caddy"] is None
    assert {goal["name"]: goal["met"] for goal in report["goals"]}["errors"] is True


def test_an_interrupted_run_ends_all_that_it_started(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [*COMMAND, "--rounds", "100", "--only", "request", "--proxies", "bellmare,direct"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=tmp_path, env={**os.environ, "TMPDIR": str(tmp_path)},
    )  # fmt: skip
    children: set[int] = set()
    deadline = time.monotonic() + 60
    while len(children) < 3:  # upstream, gateway, load
        assert process.poll() is None
        assert time.monotonic() < deadline
        children = set(tree(process.pid)) - {process.pid}
        time.sleep(0.05)
    assert list(tmp_path.iterdir())
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    assert not any(Path(f"/proc/{child}").exists() for child in children)
    assert not list(tmp_path.iterdir())
