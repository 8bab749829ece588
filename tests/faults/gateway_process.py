"""A gateway in a process of its own, so that memory, descriptors and pauses are its own; and the same as a script."""

from __future__ import annotations

import asyncio
import json
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any


class GatewayProcess:
    """Started at once; ``limits`` are fields of ``http.messages.Limits``, ``nofile`` the limit on descriptors."""

    def __init__(self, log: Path, *workers: int, nofile: int = 0, **limits: Any) -> None:
        given = json.dumps({"workers": workers, "nofile": nofile, "limits": limits})
        self.log = log
        with log.open("wb") as errors:
            self.child = subprocess.Popen(
                [sys.executable, __file__, given], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors
            )
        assert self.child.stdout is not None
        line = self.child.stdout.readline()
        assert line, log.read_text()[-2000:]
        self.port, self.admin_port, self.connections_max = json.loads(line)

    def rss(self) -> int:
        """Bytes in memory."""
        status = Path(f"/proc/{self.child.pid}/status").read_text()
        return int(status.partition("VmRSS:")[2].split()[0]) * 1024

    def descriptors(self) -> int:
        return len(list(Path(f"/proc/{self.child.pid}/fd").iterdir()))

    def lines(self, *, besides: str = "request") -> list[dict[str, Any]]:
        """What it logged that is not about one request."""
        rows = [json.loads(line) for line in self.log.read_text().splitlines() if line]
        return [row for row in rows if row["event"] != besides]

    def stop(self) -> int:
        """In good order; its exit status."""
        assert self.child.stdin is not None and self.child.stdout is not None
        self.child.stdin.close()
        try:
            return self.child.wait(30)
        finally:
            self.child.kill()
            self.child.wait()
            self.child.stdout.close()


async def _serve(given: dict[str, Any]) -> None:
    import msgspec

    from bellmare.cli.service import Service
    from bellmare.observability.logs import open_logs
    from bellmare.settings import load_settings

    workers = [{"url": f"http://127.0.0.1:{port}", "name": f"w{port}"} for port in given["workers"]]
    overrides = {"listen": "127.0.0.1:0", "admin": "127.0.0.1:0", "record": "off", "workers": workers}
    logs = open_logs(line_format="json")
    logs.capture_standard()
    service = Service(load_settings(None, environment={}, overrides=overrides), logs)
    made = service._http_limits
    service._http_limits = lambda: msgspec.structs.replace(made(), **given["limits"])  # type: ignore[method-assign]
    await service.start()
    assert service._server is not None
    sys.stdout.write(json.dumps([service.port, service.admin_port, service._server.limits.connections_max]) + "\n")
    sys.stdout.flush()
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    await service.close(grace_s=0.5)
    logs.close()


if __name__ == "__main__":
    import uvloop

    arguments = json.loads(sys.argv[1])
    if arguments["nofile"]:
        resource.setrlimit(resource.RLIMIT_NOFILE, (arguments["nofile"], arguments["nofile"]))
    uvloop.run(_serve(arguments))
