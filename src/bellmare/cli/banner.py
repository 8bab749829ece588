"""What a person sees when the gateway stands: where to connect, what is there, and the next command to try."""

import os
import shutil
import sys

from rich.console import Console
from rich.table import Table

from bellmare import __version__
from bellmare.cli.discovery import Found
from bellmare.cli.service import Service
from bellmare.cli.sizes import size_text

MODELS_SHOWN = 6
ADMIN_PORT = 11436


def show(console: Console, service: Service, found: Found | None) -> None:
    """Print the banner; short enough for any terminal."""
    host = service.settings.listen.host
    shown_host = "127.0.0.1" if host in ("0.0.0.0", "::") else (f"[{host}]" if ":" in host else host)
    url = f"http://{shown_host}:{service.port}"
    table = Table.grid(padding=(0, 2))
    table.add_row("Ollama API", f"[bold]{url}[/]")
    table.add_row("OpenAI API", f"[bold]{url}/v1[/]")
    table.add_row("Anthropic", f"[bold]{url}[/]  (/v1/messages)")
    if service.admin_port is not None:
        table.add_row("Admin", f"http://127.0.0.1:{service.admin_port}  (/metrics, /readyz)")
    table.add_row("Workers", _workers(service, found))
    names = sorted(service.gateway.known_names())
    table.add_row("Models", _models(names))
    console.print(f"\n[bold green]bellmare {__version__}[/] is ready\n")
    console.print(table)
    if names:
        console.print("\nTry:", highlight=False)
        body = f'{{"model":"{_short(names)}","messages":[{{"role":"user","content":"Why is the sky blue?"}}]}}'
        console.print(f"  curl {shown_host}:{service.port}/api/chat -d '{body}'", soft_wrap=True, markup=False)
        console.print(f"  {_command()} ps{_admin_option(service)}", highlight=False)
    console.print("\nCtrl-C stops it.\n", style="dim")


def _command() -> str:
    """How this program is called from here: plainly if it is on PATH, else as it was called."""
    return "bellmare" if shutil.which("bellmare") else os.path.relpath(sys.argv[0])


def _admin_option(service: Service) -> str:
    return "" if service.admin_port in (None, ADMIN_PORT) else f" --admin-url http://127.0.0.1:{service.admin_port}"


def _workers(service: Service, found: Found | None) -> str:
    state = service.driver.engine.fleet.state
    parts = []
    for name in service.fleet.ports:
        worker = state.workers.get(name)
        if worker is None or not worker.healthy:
            parts.append(f"[red]{name} does not answer yet[/]")
            continue
        guessed = "" if worker.capacity_known else " guessed: set workers[].vram"
        parts.append(f"{name} ({worker.kind}, {size_text(worker.capacity_bytes)}{guessed})")
    how = f"  [dim]{found.how}[/]" if found is not None else ""
    return ", ".join(parts) + how


def _models(names: list[str]) -> str:
    if not names:
        return "[yellow]none yet: `ollama pull llama3.2` on a worker[/]"
    more = f" and {len(names) - MODELS_SHOWN} more: bellmare models" if len(names) > MODELS_SHOWN else ""
    return ", ".join(names[:MODELS_SHOWN]) + more


def _short(names: list[str]) -> str:
    return min((name for name in names if "embed" not in name), key=len, default=names[0])
