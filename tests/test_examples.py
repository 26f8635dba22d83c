"""Every program in examples/ runs, with fewer steps than by itself, and learns."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"
TESTED = {"linear", "shortcut", "concat", "digits", "resnet20"}


def load(name: str) -> ModuleType:
    """The example as a module of its own."""
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_example_is_tested() -> None:
    assert {path.stem for path in EXAMPLES.glob("*.py")} == TESTED


@pytest.mark.parametrize(
    ("name", "shapes"),
    [
        ("linear", "x (16, 3, 8, 8) -> y (16, 6, 8, 8)"),
        ("shortcut", "x (16, 3, 8, 8) -> y (16, 3, 8, 8)"),
        ("concat", "x (16, 3, 8, 8) -> y (16, 36, 8, 8)"),
    ],
)
def test_small_example(name: str, shapes: str, capsys: pytest.CaptureFixture[str]) -> None:
    losses = load(name).main(steps=40)
    printed = capsys.readouterr().out
    assert shapes in printed
    assert f"loss {losses[0]:.3g} -> {losses[-1]:.3g} in 40 steps" in printed
    assert len(losses) == 40
    assert losses[-1] < 0.5 * losses[0]


def test_digits(capsys: pytest.CaptureFixture[str]) -> None:
    assert load("digits").main(epochs=2) > 0.8  # 0.1 would be chance
    assert "on 359 digits" in capsys.readouterr().out


@pytest.mark.slow
def test_resnet20(capsys: pytest.CaptureFixture[str]) -> None:
    losses = load("resnet20").main(count=32, epochs=3, batch_size=16)
    assert "272,474 weights" in capsys.readouterr().out
    assert losses[-1] < losses[0]
