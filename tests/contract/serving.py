"""Gateways for clients that run in processes of their own, and the environment that tells of them."""

from __future__ import annotations

import asyncio
import os
import socket
import xml.etree.ElementTree as ET
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

from rig import start_gateway, start_sim

from bellmare.workers.sim import SimModel

ROOT = Path(__file__).parents[2]
CLIENTS_PYTHON = ROOT / ".venv-clients" / "bin" / "python"
MODELS = (
    SimModel("talker:1", capabilities=("completion", "tools")),
    SimModel("thinker:1", capabilities=("completion", "tools", "thinking")),
    SimModel("seer:1", capabilities=("completion", "tools", "vision", "insert")),
    SimModel("me/talker:1", capabilities=("completion", "tools"), shares="talker:1"),
    SimModel("embedder:1", "bert", 12, 12, 12, 0, 768, 3072, 30_522, 2048, capabilities=("embedding",)),
)
SMOLLM = "smollm2:135m"


class Outcome(NamedTuple):
    """What a child's pytest told."""

    status: int
    output: str
    passed: int
    skipped: frozenset[str]


def closed_port() -> int:
    """Where nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _environment(**told: str) -> dict[str, str]:
    """Of a client: without keys, proxies and addresses of ours that could lead it elsewhere."""
    kept = {key: value for key, value in os.environ.items() if not _leads_away(key)}
    quiet = {"LANGSMITH_TRACING": "false", "LITELLM_LOCAL_MODEL_COST_MAP": "True", "DO_NOT_TRACK": "1"}
    return kept | quiet | {"NO_PROXY": "*", "PYTHONPATH": "", "BELLMARE_CLOSED_URL": _url(closed_port())} | told


def _leads_away(key: str) -> bool:
    upper = key.upper()
    return upper.endswith(("_API_KEY", "_PROXY", "_TOKEN")) or upper.startswith(("OLLAMA_", "OPENAI_", "ANTHROPIC_"))


def _url(port: int) -> str:
    return f"http://127.0.0.1:{port}"


@asynccontextmanager
async def simulated() -> AsyncIterator[dict[str, str]]:
    """A fast fleet of one, and a slow one with one slot and one place to wait."""
    sim = await start_sim(models=MODELS, parallel=4, vram_bytes=80 << 30)
    slow = await start_sim(models=MODELS, parallel=1, time_scale=0.2)
    gateway = await start_gateway(sim.port, num_ctx=8192)
    tight = await start_gateway(slow.port, num_ctx=8192, queue={"per_model": 1})
    try:
        yield _environment(
            BELLMARE_URL=_url(gateway.port),
            BELLMARE_TIGHT_URL=_url(tight.port),
            BELLMARE_WORKER_URL=_url(sim.port),
            BELLMARE_TALKER="talker:1",
            BELLMARE_THINKER="thinker:1",
            BELLMARE_SEER="seer:1",
            BELLMARE_EMBEDDER="embedder:1",
            BELLMARE_LIMIT="20",
        )
    finally:
        for one in (gateway, tight):
            await one.close()
        for worker in (sim, slow):
            await worker.server.close()


@asynccontextmanager
async def embedded(folder: Path) -> AsyncIterator[dict[str, str]]:
    """The real engine with SmolLM2."""
    worker = {"embedded": {"models": str(folder), "memory": "1GiB", "parallel": 2}, "name": "w0"}
    gateway = await start_gateway(worker, num_ctx=2048)
    try:
        yield _environment(
            BELLMARE_URL=_url(gateway.port),
            BELLMARE_WORKER_URL=_url(gateway.port),
            BELLMARE_TALKER=SMOLLM,
            BELLMARE_LIMIT="8",
        )
    finally:
        await gateway.close()


async def said(child: asyncio.subprocess.Process, timeout_s: float) -> tuple[bytes, bytes]:
    """What a child writes until it ends; it is killed after ``timeout_s``."""
    try:
        async with asyncio.timeout(timeout_s):
            return await child.communicate()
    except TimeoutError:
        child.kill()
        return await child.communicate()


async def run_pytest(file: str, environment: dict[str, str], folder: Path, *, marks: str, timeout_s: float) -> Outcome:
    """Run one file of ``clients`` in the clients' environment."""
    report = folder / "report.xml"
    arguments = ["-m", "pytest", "-c", "pytest.ini", file, f"--junitxml={report}", "-rs"]
    child = await asyncio.create_subprocess_exec(
        CLIENTS_PYTHON,
        *arguments,
        *(["-m", marks] if marks else []),
        cwd=Path(__file__).parent / "clients",
        env=environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    out, _ = await said(child, timeout_s)
    passed, skipped = _counts(report)
    return Outcome(child.returncode or 0, out.decode("utf-8", "replace"), passed, skipped)


def _counts(report: Path) -> tuple[int, frozenset[str]]:
    if not report.exists():
        return 0, frozenset()
    cases = ET.parse(report).getroot().iter("testcase")
    ends = [(case.get("name", ""), {child.tag for child in case}) for case in cases]
    passed = sum(not tags & {"failure", "error", "skipped"} for _, tags in ends)
    return passed, frozenset(name for name, tags in ends if "skipped" in tags)
