"""Files that were damaged by chance: each is read as a model or refused by a GraphError, in bounded time and memory.

10,000 of them in `make conformance`, a few hundred in `make test`. What is read is also turned into instructions, but not compiled.
"""

import random
import resource
import time
import tracemalloc
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_models
import pytest

from tapeprop.errors import GraphError
from tapeprop.interchange.onnx import load, load_function
from tapeprop.interchange.onnx.model import read

ALL, FEW = 10_000, 200
#: Bytes that one file may take: what a small valid one takes, many times over.
MOST_BYTES = 64 * 2**20
#: Seconds of the processor that one file may take: none comes near it, and a loop that runs astray goes beyond.
LONGEST = 60.0


def models() -> list[bytes]:
    """Valid models, the last to be mutated in."""
    made = [onnx_models.elementwise, onnx_models.mlp, onnx_models.convolutional, onnx_models.transformer]
    return [make().SerializeToString() for make in made]


def mutated(data: bytes, other: bytes, rng: random.Random) -> bytes:
    """The bytes with one to three faults: flipped bits, another byte, a cut, a hole, a splice, a varint that grows."""
    found = bytearray(data)
    for _ in range(rng.randint(1, 3)):
        if not found:
            break
        place = rng.randrange(len(found))
        match rng.randrange(7):
            case 0:
                found[place] ^= 1 << rng.randrange(8)
            case 1:
                found[place] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
            case 2:
                del found[place:]
            case 3:
                del found[place : place + rng.randint(1, 16)]
            case 4:
                start = rng.randrange(len(other))
                found[place:place] = other[start : start + rng.randint(1, 200)]
            case 5:  # a length, a dimension, a type: continued and huge
                found[place : place + 1] = b"\xff" * rng.randint(1, 9) + b"\x01"
            case _:
                end = min(len(found), place + rng.randint(1, 8))
                found[place:end] = bytes(rng.randrange(256) for _ in range(end - place))
    return bytes(found)


def leaves(message: Any) -> list[tuple[Any, Any, int | None]]:
    """(message, field, place in a repeated field) of all that is set in a protocol buffer."""
    found: list[tuple[Any, Any, int | None]] = []
    for field, value in message.ListFields():
        several = value if field.is_repeated else [value]
        for place, item in enumerate(several[:200]):
            if field.message_type is not None:
                found += leaves(item)
            found.append((message, field, place if field.is_repeated else None))
    return found


NUMBERS = (0, 1, -1, 2, 3, 7, 64, 2**31 - 1, -(2**31), 2**62, -(2**63))
TEXTS = ("", "x", "w1", "y", "Relu", "Loop", "Conv", "ai.onnx", "../w", "perm", "axis", "x" * 5000, "ü")


def meddled(data: bytes, rng: random.Random) -> bytes:
    """A protocol buffer that is well formed, one to three of its fields being deleted, doubled or of another value."""
    proto = onnx.ModelProto.FromString(data)
    for _ in range(rng.randint(1, 3)):
        message, field, place = rng.choice(leaves(proto))
        kind, value = rng.randrange(4), getattr(message, field.name)
        if kind == 0 or (field.message_type is not None and place is None):
            message.ClearField(field.name) if place is None else value.__delitem__(place)
        elif place is not None and (kind == 1 or field.message_type is not None):
            value.append(value[place])
        else:
            old = value if place is None else value[place]
            choices = {int: NUMBERS, float: (0.0, 1e38, -1.0, float("nan"), float("inf")), str: TEXTS}
            new = rng.choice(choices[type(old)]) if type(old) in choices else old[: rng.randrange(len(old) + 1)]
            try:
                if place is None:
                    setattr(message, field.name, new)
                else:
                    value[place] = new
            except ValueError:  # a number that the field cannot hold
                continue
    return proto.SerializePartialToString()


def outcome(source: bytes | Path, graph: bool) -> str:
    """ "loaded", or the name of the GraphError; anything else that happens is the test's failure."""
    try:
        load(source, build=False) if graph else load_function(source)
    except GraphError as error:
        return type(error).__name__
    return "loaded"


def fuzz(count: int, seed: int, folder: Path) -> dict[str, int]:
    """Outcomes of `count` files, an eighth of them with their weights in another file, one of both being damaged."""
    rng, valid, found = random.Random(seed), models(), {}
    outside = onnx_models.with_external_data(folder)
    parts = {path: path.read_bytes() for path in (outside, folder / "weights.bin")}
    worst = 0.0
    for i in range(count):
        started = time.process_time()
        if i % 8:
            chosen = rng.choice(valid)
            kind = outcome(meddled(chosen, rng) if i % 2 else mutated(chosen, rng.choice(valid), rng), i % 3 == 0)
        else:
            path = outside if i % 32 else folder / "weights.bin"
            damaged = (
                meddled(parts[path], rng)
                if path is outside and i % 16
                else mutated(parts[path], rng.choice(valid), rng)
            )
            path.write_bytes(damaged)
            kind = outcome(outside, i % 3 == 0)
            path.write_bytes(parts[path])
        worst = max(worst, time.process_time() - started)
        found[kind] = found.get(kind, 0) + 1
    assert worst < LONGEST
    return found


@pytest.fixture(autouse=True)
def _numbers_out_of_range():
    """NumPy warns of the arithmetic of damaged weights."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        yield


def test_valid_models_are_read(tmp_path: Path) -> None:
    for data in models():
        assert read(data).nodes
    assert read(onnx_models.with_external_data(tmp_path)).initializers["w2"].shape == (8, 3)


def test_the_faults_are_of_every_kind() -> None:
    data, rng = models()[0], random.Random(0)
    found = [mutated(data, data, rng) for _ in range(200)]
    assert len(set(found)) > 190
    assert min(map(len, found)) < len(data) < max(map(len, found))


def check(found: dict[str, int], count: int) -> None:
    assert sum(found.values()) == count
    for kind in ("loaded", "WeightFileError", "GraphError"):
        assert found.get(kind, 0) > count // 50, found


def test_damaged_files_are_read_or_refused(tmp_path: Path) -> None:
    onnx_models.mlp()  # what is imported once does not count as a file's memory
    tracemalloc.start()
    try:
        found = fuzz(FEW, 1, tmp_path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    check(found, FEW)
    assert peak < MOST_BYTES


@pytest.mark.conformance
def test_ten_thousand_damaged_files_are_read_or_refused(tmp_path: Path) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    check(fuzz(ALL, 2, tmp_path), ALL)
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < 8 * MOST_BYTES


def test_the_names_of_damaged_weights_are_told(tmp_path: Path) -> None:
    path = onnx_models.with_external_data(tmp_path)
    (tmp_path / "weights.bin").write_bytes(np.zeros(3, np.float32).tobytes())
    with pytest.raises(GraphError, match=r"model.onnx: initialiser 'w1': expected 192 bytes.*12 of 'weights.bin'"):
        read(path)
