"""`tapeprop bench`: which programs it runs, with what, and what it makes of their results."""

import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from tapeprop.cli import bench, main


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The commands that would be run; each writes its figures where it is told to."""
    found: list[list[str]] = []

    def run(command: list[str], *, env: dict[str, str], stdout: object, check: bool) -> SimpleNamespace:
        assert command[0] == sys.executable
        assert (Path(env["PYTHONPATH"].split(os.pathsep)[0]) / "tapeprop").is_dir()
        found.append([Path(command[1]).stem, *command[2:]])
        if "--output" in command:
            assert stdout is sys.stderr  # stdout is for the JSON alone
            Path(command[-1]).write_text(json.dumps({"from": Path(command[1]).stem}), encoding="utf-8")
        return SimpleNamespace(returncode=3 if "fail" in command else 0)

    monkeypatch.setattr(bench.subprocess, "run", run)
    return found


def test_programs_are_there() -> None:
    assert [name for name in bench.SUITE if not (bench.FOLDER / f"{name}.py").is_file()] == []


def test_all_run_by_default(calls) -> None:
    assert main(["bench"]) == 0
    assert calls == [
        ["train"],
        ["infer"],
        ["memory"],
        ["scaling"],
        ["graphs"],
        ["formula"],
        ["profiler"],
        ["infrastructure", "--cold"],
    ]


def test_arguments_go_to_the_program(calls) -> None:
    assert main(["bench", "train", "--network", "mlp", "--rows"]) == 0
    assert calls == [["train", "--network", "mlp", "--rows"]]


def test_json_is_one_object(calls, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {name: {"from": name} for name in bench.SUITE}


def test_the_code_of_a_program_that_fails_is_given(calls) -> None:
    assert main(["bench", "train", "fail"]) == 3


def test_without_a_checkout_the_error_says_so(monkeypatch, tmp_path, capsys) -> None:
    monkeypatch.setattr(bench, "FOLDER", tmp_path)
    assert main(["bench"]) == 1
    assert "source checkout" in capsys.readouterr().err
