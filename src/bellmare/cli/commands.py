"""The command tree: what each command takes and what its help says. The work is done in the modules it names."""

from pathlib import Path
from typing import Annotated

import typer

from bellmare import __version__

app = typer.Typer(
    name="bellmare",
    help="The gateway in front of your Ollama servers: it decides what is loaded where, and queues with bounds.",
    epilog="Start with `bellmare up`; look with `bellmare ps`; try without a GPU with `bellmare demo`.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
worker_app = typer.Typer(help="Run an Ollama-compatible worker of our own.", no_args_is_help=True)
config_app = typer.Typer(help="Check and show settings.", no_args_is_help=True)
bench_app = typer.Typer(help="Measure bellmare on this machine.", no_args_is_help=True)
app.add_typer(worker_app, name="worker")
app.add_typer(bench_app, name="bench")
app.add_typer(config_app, name="config")

ConfigPath = Annotated[
    Path | None, typer.Option("--config", "-c", help="Settings file [default: ./bellmare.yaml if it exists].")
]
Listen = Annotated[str | None, typer.Option(help="Address of the gateway [default: 127.0.0.1:11435].")]
AdminListen = Annotated[str | None, typer.Option("--admin", help="Address of the admin API, or `off`.")]
Workers = Annotated[
    list[str] | None, typer.Option("--worker", "-w", help="URL of an Ollama server; may be given several times.")
]
AdminUrl = Annotated[
    str,
    typer.Option(
        "--admin-url",
        envvar="BELLMARE_ADMIN_URL",
        help="Where the gateway's admin API answers [default: as the settings here say, else 127.0.0.1:11436].",
        show_default=False,
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON document instead of a table.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No banner.")]


def _version(value: bool) -> None:
    if value:
        typer.echo(f"bellmare {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", "-V", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """The gateway in front of your Ollama servers."""


@app.command()
def up(
    *,
    config: ConfigPath = None,
    listen: Listen = None,
    admin: AdminListen = None,
    worker: Workers = None,
    quiet: Quiet = False,
) -> None:
    """Find or start a worker and serve: the whole thing with no configuration.

    Uses, in this order: the workers of the settings, a reachable Ollama (OLLAMA_HOST, else 127.0.0.1:11434), an
    `ollama` on PATH (started by us), the embedded engine with a small model.
    """
    from bellmare.cli.serving import serve_command

    serve_command(config, listen=listen, admin=admin, workers=worker, discover=True, quiet=quiet)


@app.command()
def serve(
    *,
    config: ConfigPath = None,
    listen: Listen = None,
    admin: AdminListen = None,
    worker: Workers = None,
    quiet: Quiet = False,
) -> None:
    """Serve the workers that the settings name, and only those."""
    from bellmare.cli.serving import serve_command

    serve_command(config, listen=listen, admin=admin, workers=worker, discover=False, quiet=quiet)


@app.command()
def demo(  # tidy: one parameter for each flag
    *,
    seconds: Annotated[float | None, typer.Option(help="End by itself after so long.", min=1.0)] = None,
    clients: Annotated[int, typer.Option(help="Concurrent clients.", min=1, max=1000)] = 24,
    speed: Annotated[float, typer.Option(help="How many times faster than real.", min=0.1, max=10_000.0)] = 10.0,
    listen: Annotated[int, typer.Option(help="Port of the gateway; 0 is any free one.", min=0, max=65535)] = 11435,
    json: AsJson = False,
    keep_log: Annotated[bool, typer.Option(help="Keep the event log for `bellmare replay`.")] = False,
) -> None:
    """Watch it work: three simulated 24 GB GPUs, nine models, traffic, a live table. Nothing is computed."""
    from bellmare.cli.demo import run_demo

    raise typer.Exit(
        run_demo(seconds=seconds, clients=clients, speed=speed, json_output=json, port=listen, keep_log=keep_log)
    )


@app.command()
def ps(admin_url: AdminUrl = "", json: AsJson = False) -> None:
    """What is loaded, loading or leaving, and where."""
    from bellmare.cli.asking import show_ps

    show_ps(admin_url, as_json=json)


@app.command()
def models(admin_url: AdminUrl = "", json: AsJson = False) -> None:
    """Every model that the fleet stores."""
    from bellmare.cli.asking import show_models

    show_models(admin_url, as_json=json)


@app.command()
def workers(admin_url: AdminUrl = "", json: AsJson = False) -> None:
    """Every worker, its health and the parts of its memory."""
    from bellmare.cli.asking import show_workers

    show_workers(admin_url, as_json=json)


@app.command()
def queue(admin_url: AdminUrl = "", json: AsJson = False) -> None:
    """Who waits for which model, whose turn it is, and for about how long."""
    from bellmare.cli.asking import show_queue

    show_queue(admin_url, as_json=json)


@app.command()
def shadows(admin_url: AdminUrl = "", json: AsJson = False) -> None:
    """What other policies and stock Ollama would have loaded, and what was saved; lately: over about six hours."""
    from bellmare.cli.asking import show_shadows

    show_shadows(admin_url, as_json=json)


@app.command()
def load(
    model: str,
    *,
    worker: Annotated[str | None, typer.Option(help="Load it there instead of where it suits best.")] = None,
    wait: Annotated[bool, typer.Option(help="Wait until it is ready.")] = True,
    admin_url: AdminUrl = "",
    json: AsJson = False,
) -> None:
    """Load a model now."""
    from bellmare.cli.asking import ask_load

    ask_load(admin_url, model, worker=worker, wait=wait, as_json=json)


@app.command()
def unload(
    model: str,
    *,
    worker: Annotated[str | None, typer.Option(help="Only from there.")] = None,
    wait: Annotated[bool, typer.Option(help="Wait until it is gone.")] = True,
    admin_url: AdminUrl = "",
    json: AsJson = False,
) -> None:
    """Let a model go once its requests are done."""
    from bellmare.cli.asking import ask_unload

    ask_unload(admin_url, model, worker=worker, wait=wait, as_json=json)


@app.command()
def prepare(
    models: Annotated[list[str], typer.Argument(metavar="MODEL...", help="At most eight.")],
    *,
    within: Annotated[str, typer.Option("--in", help="When it will be asked for: 10s, 2m.")] = "0s",
    ttl: Annotated[str, typer.Option(help="How long after that it is still expected [default: 60s].")] = "",
    url: Annotated[
        str, typer.Option(envvar="BELLMARE_URL", help="The gateway [default: as set here, else 127.0.0.1:11435].")
    ] = "",
    json: AsJson = False,
) -> None:
    """Say which models will be asked for soon: a hint, which costs nobody anything hotter; waits for nothing."""
    from bellmare.cli.preparing import ask_prepare

    ask_prepare(url, models, within=within, ttl=ttl, as_json=json)


@app.command()
def reload(
    *,
    force: Annotated[bool, typer.Option(help="Also if more than half of the workers would be removed.")] = False,
    admin_url: AdminUrl = "",
    json: AsJson = False,
) -> None:
    """Have the running gateway read its settings again, as SIGHUP does: a bad file changes nothing."""
    from bellmare.cli.asking import ask_reload

    ask_reload(admin_url, force=force, as_json=json)


@app.command()
def restart(*, admin_url: AdminUrl = "", json: AsJson = False) -> None:
    """Replace the running gateway by a new process, as SIGUSR2 does: no request is lost, nothing is unloaded."""
    from bellmare.cli.asking import ask_restart

    ask_restart(admin_url, as_json=json)


@app.command()
def explain(subject: str, admin_url: AdminUrl = "", json: AsJson = False) -> None:
    """Why: what was decided lately about a request id, a model or a worker."""
    from bellmare.cli.asking import show_explain

    show_explain(admin_url, subject, as_json=json)


@app.command()
def replay(
    log: Annotated[Path, typer.Argument(help="An event log, or the folder of one.")], json: AsJson = False
) -> None:
    """Feed a recorded log to a fresh core; exits with 1 at the first decision that differs."""
    from bellmare.cli.replaying import replay_command

    raise typer.Exit(replay_command(log, as_json=json))


@app.command()
def simulate(  # tidy: one parameter for each flag
    *,
    suite: Annotated[
        str, typer.Option(help="`policy`: every scenario, every policy, five seeds; `claims`: published figures tried.")
    ] = "",
    scenario: Annotated[str, typer.Option(help="S1 to S9, several with commas, or all (default: S1).")] = "",
    trace: Annotated[
        Path | None, typer.Option(help="A trace instead: Azure, GenTD26, ServeGen, or our own event log (its folder).")
    ] = None,
    traces: Annotated[
        Path | None, typer.Option(help="A folder: every trace in it, on the fleets that suit it.")
    ] = None,
    fleet: Annotated[
        str,
        typer.Option(
            help="4x24GB, 2x24GB+1x48GB, 1x24GB,ram=64GB,disk=2GB/s (default: what suits the scenario or trace)."
        ),
    ] = "",
    policy: Annotated[
        str, typer.Option(help="Such as lru,belady; several with commas, or all; see docs/simulate.md.")
    ] = "",
    seeds: Annotated[
        int | None, typer.Option(help="Draws of model sizes and arrivals (default: 1, or the suite's).", min=1, max=100)
    ] = None,
    first_seed: Annotated[int, typer.Option(help="Begin with this one, to repeat a run.", min=0)] = 1,
    jobs: Annotated[int | None, typer.Option("--jobs", "-j", help="Processes (default: all CPUs).", min=1)] = None,
    json: AsJson = False,
    html: Annotated[Path | None, typer.Option(help="Write a page with charts too; it needs no network.")] = None,
) -> None:
    """The same core in virtual time: cold starts and waits, beside stock Ollama and a clairvoyant bound.

    A first look: `bellmare simulate`. Would two more GPUs help? `bellmare simulate --trace var/events --fleet 4x24GB`.
    Every policy on everything: `bellmare simulate --suite policy --html report.html`.
    """
    from bellmare.sim.command import run_simulate
    from bellmare.sim.subjects import Asked

    asked = Asked(
        suite=suite, scenario=scenario, trace=trace, traces=traces, fleet=fleet, policy=policy, seeds=seeds,
        first_seed=first_seed, jobs=jobs, as_json=json, html=html,
    )  # fmt: skip
    raise typer.Exit(run_simulate(asked))


@worker_app.command("sim")
def worker_sim(  # tidy: one parameter for each flag
    *,
    port: Annotated[int, typer.Option(help="Port on 127.0.0.1.", min=0, max=65535)] = 11434,
    vram: Annotated[str, typer.Option(help="Memory of the simulated GPU, e.g. 24GB.")] = "24GB",
    parallel: Annotated[int, typer.Option(help="OLLAMA_NUM_PARALLEL.", min=1, max=64)] = 4,
    speed: Annotated[float, typer.Option(help="How many times faster than real.", min=0.001)] = 1.0,
    max_loaded: Annotated[int, typer.Option(help="OLLAMA_MAX_LOADED_MODELS; 0 is Ollama's default.", min=0)] = 0,
    stock: Annotated[bool, typer.Option(help="Do not answer /api/bellmare: look like any Ollama.")] = False,
    seed: Annotated[int, typer.Option(help="Decides what is said, never what happens.")] = 0,
) -> None:
    """A simulated Ollama server: real API, real scheduler behaviour, no GPU, nothing computed."""
    from bellmare.cli.working import SimOptions, run_sim

    run_sim(SimOptions(vram=vram, parallel=parallel, speed=speed, max_loaded=max_loaded, stock=stock, seed=seed), port)


@worker_app.command("embedded")
def worker_embedded(
    *,
    port: Annotated[int, typer.Option(help="Port on 127.0.0.1.", min=0, max=65535)] = 11434,
    models: Annotated[Path | None, typer.Option(help="Folder of *.gguf files [default: our own].")] = None,
    memory: Annotated[str | None, typer.Option(help="Memory for all models, e.g. 8GiB [default: half].")] = None,
    parallel: Annotated[int, typer.Option(help="Requests at once per model.", min=1, max=64)] = 2,
    threads: Annotated[int, typer.Option(help="CPU threads per model; 0 is the engine's choice.", min=0)] = 0,
) -> None:
    """A real llama.cpp engine behind Ollama's API, on the CPU: demo quality."""
    from bellmare.cli.working import EmbeddedOptions, run_embedded

    run_embedded(EmbeddedOptions(models=models, memory=memory, parallel=parallel, threads=threads), port)


@bench_app.command("proxy")
def bench_proxy(  # tidy: one parameter for each flag
    *,
    rounds: Annotated[
        int | None, typer.Option(help="How often everything is repeated (default: 3, quick: 1).", min=1, max=100)
    ] = None,
    quick: Annotated[bool, typer.Option(help="Under a minute: for development, not for figures to pass on.")] = False,
    only: Annotated[str, typer.Option(help="Of request,chunk,latency,memory,disconnect; several with commas.")] = "",
    proxies: Annotated[str, typer.Option(help="Of bellmare,nginx,haproxy,caddy,direct; several with commas.")] = "",
    profile: Annotated[str, typer.Option(help="`request` or `chunk`: only that, bellmare under cProfile.")] = "",
    check: Annotated[bool, typer.Option(help="Exit with 1 if a goal is missed.")] = False,
    json: AsJson = False,
) -> None:
    """What a request and a chunk cost through bellmare, beside nginx, HAProxy and Caddy where they are installed.

    Starts all of them and a fake Ollama on loopback, for some minutes, and ends them. Linux only.
    """
    from bellmare.bench.proxy.command import Asked, run_bench_proxy

    asked = Asked(rounds=rounds, quick=quick, only=only, proxies=proxies, profile=profile, check=check, as_json=json)
    raise typer.Exit(run_bench_proxy(asked))


@config_app.command("check")
def config_check(config: Annotated[Path, typer.Argument(help="A settings file.")]) -> None:
    """Whether a settings file is right; every problem with line and reason."""
    from bellmare.cli.configuring import check

    raise typer.Exit(check(config))


@config_app.command("show")
def config_show(config: ConfigPath = None) -> None:
    """Every setting in force and where it comes from."""
    from bellmare.cli.configuring import show

    show(config)


@config_app.command("schema")
def config_schema() -> None:
    """The JSON schema of bellmare.yaml."""
    from bellmare.cli.configuring import schema

    schema()
