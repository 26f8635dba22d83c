"""Every program in examples/ runs, with fewer steps than by itself, and learns."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

import tapeprop as tp

EXAMPLES = Path(__file__).parent.parent / "examples"
TESTED = {
    "linear", "shortcut", "concat", "digits", "resnet20", "recurrent", "two_heads", "edit_while_training", "gan",
    "formula", "why_is_it_slow", "digits_cuda", "onnx_round_trip",
}  # fmt: skip


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


def test_recurrent(capsys: pytest.CaptureFixture[str]) -> None:
    assert load("recurrent").main() > 0.9
    assert "share 3168 weights and 58 biases" in capsys.readouterr().out  # 8 * 48 + 48 * 48 + 48 * 10, 48 + 10


def test_two_heads(capsys: pytest.CaptureFixture[str]) -> None:
    accuracy, error = load("two_heads").main(epochs=8)
    assert accuracy > 0.9
    assert error < 0.15  # the centres themselves lie 0.3 pixels from the middle
    assert f"accuracy {accuracy:.3f}, centres off by {error:.3f} pixels" in capsys.readouterr().out


def test_edit_while_training(capsys: pytest.CaptureFixture[str]) -> None:
    first, second, third = load("edit_while_training").main(epochs=3)
    assert first > 0.8
    assert min(second, third) > first
    kept = f"accuracy {first:.3f} -> {second:.3f}"  # as good after the edit as before
    assert kept in capsys.readouterr().out


def test_gan(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    gan, picture = load("gan"), tmp_path / "drawn.pgm"
    samples = gan.main(steps=600, picture=str(picture))
    assert samples.shape == (64, 1, 8, 8)
    real = tp.datasets.digits()[0].mean(axis=0)
    assert np.corrcoef(samples.mean(axis=0).ravel(), real.ravel())[0, 1] > 0.9  # ink is where digits have it
    assert samples.std(axis=0).mean() > 0.1  # and they are not all the same
    header, _, pixels = picture.read_bytes().partition(b" 255\n")
    assert header == b"P5 960 540"  # 16 columns and 9 rows of 10 by 10 pixels, each drawn 6 by 6
    assert len(pixels) == 960 * 540
    assert "step 600: loss of the discriminator" in capsys.readouterr().out


def test_each_network_of_the_gan_is_trained_by_its_own_step_alone() -> None:
    gan = load("gan")
    generator, discriminator, both = gan.networks()
    both.build(workers=1).set_optimizer(tp.optimizers.Adam())
    generator.build(workers=1)
    discriminator.build(workers=1).set_optimizer(tp.optimizers.Adam())
    noise, loss = np.random.default_rng(0).standard_normal((8, gan.NOISE)), tp.losses.BinaryCrossEntropy()

    def changed(step: Callable[[], object]) -> set[str]:
        before = both.state_dict()
        step()
        return {name.split(".")[0] for name, value in both.state_dict().items() if (value != before[name]).any()}

    for _ in range(2):
        assert changed(lambda: both.train_step(noise, np.ones((8, 1)), loss)) == {"generator"}
        step = changed(lambda: discriminator.train_step(generator(noise), np.zeros((8, 1)), loss))
        assert step == {"discriminator"}
    np.testing.assert_array_equal(both(noise), discriminator(generator(noise)))
    assert all(
        np.shares_memory(p.value, q.value)
        for (_, p), (_, q) in zip(
            both.named_parameters(), [*generator.named_parameters(), *discriminator.named_parameters()], strict=True
        )
    )


@pytest.mark.slow
def test_resnet20(capsys: pytest.CaptureFixture[str]) -> None:
    losses = load("resnet20").main(count=32, epochs=3, batch_size=16)
    assert "272,474 weights" in capsys.readouterr().out
    assert losses[-1] < losses[0]


def test_formula(capsys: pytest.CaptureFixture[str]) -> None:
    value, spring = load("formula").main(steps=300)
    assert value == pytest.approx(7.449141132070976, rel=1e-12)
    assert spring == pytest.approx({"a": 1.5, "w": 2.0, "d": 0.3}, abs=0.02)  # the noise of 200 measurements
    assert "second derivatives by x1: -11.319959" in capsys.readouterr().out


def test_onnx_round_trip(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    before, after, parity = load("onnx_round_trip").main(str(tmp_path / "digits.onnx"), epochs=4)
    assert before == after > 0.9
    assert parity > 0.85  # 0.5 would be chance
    assert "at even or odd" in capsys.readouterr().out


def test_why_is_it_slow(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    example = load("why_is_it_slow")
    x = np.random.default_rng(0).standard_normal((3, 24, 8, 8))
    layers = [example.NumpySwish(), example.swish()]
    graphs = [
        tp.LayerGraph({node: []}, root=node, term=node).build(x.shape, dtype="float64")
        for node in map(tp.LayerNode, layers)
    ]
    for graph in graphs:
        graph.forward(x)
    np.testing.assert_allclose(graphs[0].backward(), graphs[1].backward(), rtol=1e-12, atol=1e-12)
    profiles = example.main(repeats=2, folder=str(tmp_path))
    before, between, after = [{row.op for row in tape.rows} for found in profiles.values() for tape in found.tapes]
    assert {"python", "python_grad"} <= before  # what it costs, and so what diagnose() says, is the machine's matter
    assert not {"python", "python_grad", "conv2d_lanes"} & between
    assert "conv2d_lanes" in after
    printed = capsys.readouterr().out
    for name in ("as written", "in ops", "whole lanes"):
        assert f"--- {name}: " in printed
        assert f"{name}.html" in printed
    assert {path.name for path in tmp_path.iterdir()} == {f"{name}.html" for name in profiles}


def test_digits_cuda_says_that_there_is_no_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    if (found := load("digits_cuda").main(epochs=8)) is None:
        printed = capsys.readouterr().out
        assert "There is no GPU" in printed
        assert "cuda" in printed
    else:
        assert found > 0.8
