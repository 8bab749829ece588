"""A minute of mixed load and faults: nothing grows, nothing is left, and every request is accounted for."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from bellmare.bench.soak import accounting, leftovers, main
from bellmare.bench.soak_load import SoakLoad

MINUTES = 1.0


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_minute_of_load_and_faults_leaves_nothing_and_loses_nothing(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "bellmare.bench.soak", "--minutes", str(MINUTES), "--output", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=360,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((tmp_path / "soak.json").read_bytes())
    assert report["problems"] == []
    assert report["requests"] > 200
    assert report["left"] > 0
    assert sum(report["faults"].values()) >= 5
    assert report["reloads"] > 0
    assert report["answered"]["200"] > report["requests"] / 2
    assert (tmp_path / "soak.svg").read_text().startswith("<svg")
    assert "Traceback" not in (tmp_path / "gateway.log").read_text()


async def test_books_that_differ_by_more_than_who_left_are_told() -> None:
    load = SoakLoad(9, users=1, models=("a",), embedder="e")
    load.books.sent, load.books.left = 10, 2
    load.books.answered = Counter({"200": 7, "429": 1})
    assert accounting(load, {"200": 7, "429": 1, "499": 2}) == []
    assert accounting(load, {"200": 8, "429": 1}) == []
    assert accounting(load, {"200": 7, "499": 1}) == ["status 429: the gateway counts 0, clients were told 1"]
    assert len(accounting(load, {"200": 6, "429": 1})) == 2, "seven are too few, and so are six 200s"
    assert len(accounting(load, {"200": 12, "429": 1})) == 2, "thirteen are too many, and so are twelve 200s"
    load.books.broken["reset"] = 1
    assert any("broken" in problem for problem in accounting(load, {"200": 7, "429": 1, "499": 2}))
    load.books.sent = 12
    assert any("12 sent, 11 ended" in problem for problem in accounting(load, {"200": 7, "429": 1, "499": 2}))
    await load._upstream.close()


def test_what_is_left_at_rest_is_told() -> None:
    before = dict.fromkeys(("requests_in_system", "client_connections", "tasks", "own_descriptors"), 0.0)
    assert leftovers(before, before) == []
    assert len(leftovers(before, {**before, "requests_in_system": 1, "tasks": 50})) == 2


@pytest.mark.parametrize("flag", ["--minutes=0", "--users=0", "--workers=99", "--minutes=100000"])
def test_a_soak_out_of_bounds_is_refused(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([flag])
    assert ended.value.code == 2
    assert "at most" in capsys.readouterr().err
