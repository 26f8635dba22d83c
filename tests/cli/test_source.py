"""The graph that a user names: what is found where, and what is said where there is none."""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path

import pytest
from cli.profile_runs import process as process  # a fixture of every test here

import tapeprop as tp
from tapeprop import cli
from tapeprop.cli.source import build, load
from tapeprop.errors import WeightFileError
from tapeprop.layers import Dense

EXAMPLES = Path(__file__).parents[2] / "examples"

#: What every file begins with: chain(n) is a graph of n nodes.
HEAD = """
import tapeprop as tp
from tapeprop.layers import Dense

def chain(count):
    nodes = [tp.LayerNode(Dense(2, 2), name=f"n{i}") for i in range(count)]
    edges = {a: [b] for a, b in zip(nodes, nodes[1:])}
    return tp.LayerGraph({**edges, nodes[-1]: []}, root=nodes[0], term=nodes[-1], seed=0)

"""


@pytest.fixture
def write(tmp_path: Path):
    """Writes nets.py into the working directory, which is empty."""

    def made(text: str, name: str = "nets.py", head: str = HEAD) -> str:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(head + textwrap.dedent(text), encoding="utf-8")
        return name

    return made


def found(text: str) -> tuple[str, int]:
    """(name, number of nodes)."""
    source = load(text)
    return source.name, len(source.graph)


# ---- what is found


@pytest.mark.parametrize(
    ("text", "name", "nodes"),
    [
        ("graph = chain(2)", "graph", 2),
        ("other = chain(1); model = chain(2)", "model", 2),
        ("other = chain(3)", "other", 3),
        ("graph = model = chain(2)", "graph", 2),
        ("def network(): return chain(2)\ngraph = network()", "graph", 2),
        ("def network(): return chain(2)", "network", 2),
        ("def build_model(depth=4): return chain(depth)", "build_model", 4),
        ("def Net(*sizes, **options) -> tp.LayerGraph: return chain(3)", "Net", 3),
        ("def deep() -> tp.LayerGraph: return chain(5)", "deep", 5),
        ("def deep() -> 'tp.LayerGraph': return chain(5)", "deep", 5),
        ("def deep() -> 'Unknown.LayerGraph': return chain(5)", "deep", 5),
        ("def deep() -> tuple[tp.LayerGraph, int]: return chain(5), 3", "deep.0", 5),
        ("def deep() -> dict[str, tp.LayerGraph]: return {'a': chain(5)}", "deep.a", 5),
        ("def deep() -> tp.LayerGraph | None: return chain(5)", "deep", 5),
        ("class Deep(tp.LayerGraph):\n    def __init__(self): super().__init__(seed=3)", "Deep", 0),
        ("import functools\n@functools.cache\ndef deep() -> tp.LayerGraph: return chain(5)", "deep", 5),
        ("def build(): return 3\ndef deep() -> tp.LayerGraph: return chain(5)", "deep", 5),
        ("def model() -> int: return 3\ndef deep() -> tp.LayerGraph: return chain(5)", "deep", 5),
        ("def make(size): return chain(1)\ndef deep() -> tp.LayerGraph: return chain(5)", "deep", 5),
        ("def main() -> tp.LayerGraph: raise SystemExit\ndef deep() -> tp.LayerGraph: return chain(5)", "deep", 5),
        ("_graph = chain(1)\ndef deep() -> tp.LayerGraph: return chain(5)", "deep", 5),
        ("from tapeprop.cli.digits import digits_network\ndef deep() -> tp.LayerGraph: return chain(5)", "deep", 5),
        ("if __name__ == '__main__': raise SystemExit\ngraph = chain(2)", "graph", 2),
    ],
)
def test_the_graph_of_a_file(write, text: str, name: str, nodes: int) -> None:
    assert found(write(text)) == (f"nets.py:{name}", nodes)


@pytest.mark.parametrize(
    ("name", "nodes"),
    [
        ("graph", 1),
        ("deep", 2),
        ("pair.1", 2),
        ("pair_of.0", 1),
        ("named.b", 2),
        ("Holder.inner", 3),
        ("Holder.made", 4),
        ("_hidden", 5),
        ("make", 6),
    ],
)
def test_a_name_chooses(write, name: str, nodes: int) -> None:
    write(
        """
        import functools
        graph = chain(1)
        def deep(): return chain(2)
        pair = [chain(1), chain(2)]
        def pair_of(): return chain(1), chain(2)
        def named(): return {"a": chain(1), "b": chain(2)}
        class Holder:
            inner = chain(3)
            @staticmethod
            def made(): return chain(4)
        _hidden = chain(5)
        make = functools.partial(chain, 6)
        """
    )
    assert found(f"nets.py:{name}") == (f"nets.py:{name}", nodes)
    assert found(f"nets:{name}") == (f"nets:{name}", nodes)


def test_modules_in_packages(write) -> None:
    write("graph = chain(2)", "package/inner/nets.py")
    assert found("package.inner.nets:graph") == ("package.inner.nets:graph", 2)


def test_a_file_is_run_as_python_runs_it(write, monkeypatch, capsys) -> None:
    """Its folder comes first, its arguments are its own, and it is neither __main__ nor in the way of a module of its name."""
    write("SIZE = 3", "folder/helper.py")
    write(
        """
        import sys
        from helper import SIZE
        assert sys.argv == ["folder/json.py"]
        assert __name__ != "__main__"
        assert sys.modules[__name__].__file__ == "folder/json.py"
        from dataclasses import dataclass
        @dataclass
        class Settings:
            size: int = SIZE
        print("hello")
        graph = chain(Settings().size)
        """,
        "folder/json.py",
    )
    monkeypatch.setattr(sys, "argv", ["tapeprop", "profile", "--json"])
    import json

    assert found("folder/json.py") == ("folder/json.py:graph", 3)
    assert sys.modules["json"] is json
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "hello\n")
    assert not Path("folder/__pycache__/json.cpython-311.pyc").exists()
    assert list(Path("folder").glob("__pycache__/json.*")) == []


def test_digits_and_saved_graphs(write, tmp_path) -> None:
    assert load("digits").input_shape == (32, 1, 8, 8)
    write("graph = chain(2)")
    load("nets.py").graph.build((None, 2), dtype="float64").save("saved.safetensors")
    source = load("saved.safetensors")
    assert (source.name, len(source.graph), source.graph.dtype) == ("saved.safetensors", 2, "float64")
    Path("a:b").write_bytes(Path("saved.safetensors").read_bytes())
    assert len(load("a:b").graph) == 2


@pytest.mark.parametrize(
    "name", ["concat", "digits", "linear", "recurrent", "resnet20", "shortcut", "two_heads", "gan.py:networks.2"]
)
def test_examples(name: str) -> None:
    path, _, inside = name.partition(".py:")
    source = load(f"{EXAMPLES / path}.py" + (f":{inside}" if inside else ""))
    assert source.graph.check().order
    assert source.module is not None


# ---- what is not


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a = chain(1); b = chain(2)", "nets.py defines 2 graphs; choose one: nets.py:a, nets.py:b"),
        ("graph = chain(1); model = chain(2)", "choose one: nets.py:graph, nets.py:model"),
        (
            "def a() -> tp.LayerGraph: ...\ndef b() -> tp.LayerGraph: ...",
            "nets.py defines 2 graphs; choose one: nets.py:a, nets.py:b",
        ),
        ("\n".join(f"def f{i}() -> tp.LayerGraph: ..." for i in range(12)), "nets.py:f7 and 4 more"),
        (
            "def deep() -> tuple[tp.LayerGraph, tp.LayerGraph]: return chain(1), chain(2)",
            "choose one: nets.py:deep.0, nets.py:deep.1",
        ),
        ("x = 1", "nets.py defines no graph; expected a LayerGraph at module level"),
        ("def main(): chain(1)", "nets.py defines no graph (what main() makes stays inside it); expected"),
        ("def deep(): return chain(1)", "nets.py defines no graph; if a function gives it, name that: nets.py:deep"),
        ("def deep() -> tp.LayerGraph: return None", "nets.py defines no graph"),
        ("x = 1 / 0", "nets.py, line 10 raised ZeroDivisionError: division by zero"),
        ("raise ValueError('one\\ntwo')", "nets.py, line 10 raised ValueError: one"),
        ("raise SystemExit(3)", "nets.py, line 10 raised SystemExit: 3"),
        ("assert False", "nets.py, line 10 raised AssertionError"),
        ("import no_such_module", "raised ModuleNotFoundError: No module named 'no_such_module'"),
        ("x = (", "nets.py, line 10: SyntaxError: '(' was never closed"),
        ("x = '\0'", "null byte"),
        ("def network(): raise KeyError('x')", "nets.py:network() (nets.py, line 10) raised KeyError: 'x'"),
        ("class Net(tp.LayerGraph):\n    def init_nodes(self): return chain(0)", "raised IndexError"),
    ],
)
def test_files_without_a_graph(write, text: str, expected: str) -> None:
    with pytest.raises((ValueError, TypeError)) as caught:
        load(write(text))
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("number", "nets.py:number is a value of type int, not a LayerGraph"),
        ("nothing", "nets.py:nothing gives None, not a LayerGraph"),
        ("chain", "nets.py:chain needs arguments"),
        ("other", "nets.py has no 'other'; it has nothing"),
        ("number.real.x", "nets.py has no 'x' in number.real"),
        ("nothing.3", "nets.py has no '3' in nothing"),
        ("pair", "nets.py:pair gives 2 graphs; choose one: nets.py:pair.0, nets.py:pair.1"),
        ("pair.2", "nets.py has no '2' in pair"),
        ("number.", "nets.py has no '' in number"),
        ("fails", "nets.py:fails() (nets.py, line 13) raised ZeroDivisionError"),
    ],
)
def test_names_without_a_graph(write, name: str, expected: str) -> None:
    write(
        "number = 3\ndef nothing(): ...\ndef pair() -> list: return [chain(1), chain(2)]\ndef fails() -> int: return 1 / 0"
    )
    with pytest.raises((ValueError, TypeError)) as caught:
        load(f"nets.py:{name}")
    assert expected in str(caught.value)


@pytest.mark.parametrize(
    ("text", "kind", "expected"),
    [
        ("none.py", FileNotFoundError, "there is no file 'none.py'"),
        ("none.py:graph", FileNotFoundError, "there is no file 'none.py'"),
        ("none.safetensors", FileNotFoundError, 'is neither "digits" nor a file'),
        ("none:graph", FileNotFoundError, "there is no module 'none'"),
        ("package.none:graph", FileNotFoundError, "there is no module 'package.none'"),
        ("broken:graph", ValueError, "broken (broken.py, line 1) raised ModuleNotFoundError: No module named 'none'"),
        ("a-b:graph", FileNotFoundError, "nor module:name"),
        ("", FileNotFoundError, "neither"),
        (":", FileNotFoundError, "neither"),
        ("package", IsADirectoryError, "'package' is a folder"),
        ("folder.py", FileNotFoundError, "'folder.py' is a folder"),
        ("text.txt", WeightFileError, "no safetensors file"),
        ("text.txt:graph", ValueError, "'text.txt' is no Python file"),
    ],
)
def test_what_is_not_there(write, text: str, kind: type, expected: str) -> None:
    write("", "package/__init__.py")
    write("", "folder.py/x")
    write("import none", "broken.py", "")
    write("some text that is long enough", "text.txt", "")
    with pytest.raises(kind) as caught:
        load(text)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("command", ["summary", "plot"])
def test_commands_take_what_python_defines(write, capsys, command: str) -> None:
    write("graph = chain(2)\nother = chain(3)")
    for text, last in (("nets.py", "n1"), ("nets.py:other", "n2"), ("nets:other", "n2")):
        assert cli.main([command, text]) == 0
        captured = capsys.readouterr()
        assert last in captured.out
        assert captured.err == ""


def test_one_line_and_exit_code_1(write, capsys) -> None:
    write("raise ValueError('one\\ntwo')")
    assert cli.main(["summary", "nets.py"]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "tapeprop summary: error: nets.py, line 10 raised ValueError: one\n"


def test_a_file_that_failed_can_be_loaded_again(write) -> None:
    with pytest.raises(ValueError, match="raised"):
        load(write("x = 1 / 0"))
    assert found(write("graph = chain(2)")) == ("nets.py:graph", 2)
    assert found(write("graph = chain(3)")) == ("nets.py:graph", 3)


# ---- build


def test_build_keeps_what_was_built() -> None:
    node = tp.LayerNode(Dense(2, 3))
    graph = tp.LayerGraph({node: []}, root=node, term=node, seed=0)
    assert build(graph, (None, 2)) is graph
    assert graph.build_options()["input_shape"] == (None, 2)
    graph.build((4, 2), clip_norm=2.0)
    assert build(graph, dtype="float32", input_shape=None) is graph
    assert graph.build_options()["clip_norm"] == 2.0
    assert build(graph, dtype=None) is graph
    other = build(graph, dtype="float64")  # weights cannot change their dtype where they lie
    assert other is not graph
    assert (other.dtype, graph.dtype, graph.built_) == ("float64", "float32", True)
    assert other.build_options() == {**graph.build_options(), "dtype": "float64"}


def test_build_leaves_what_is_built() -> None:
    node = tp.LayerNode(Dense(2, 3))
    graph = tp.LayerGraph({node: []}, root=node, term=node, seed=0).build((4, 2), workers=1)
    network = graph._network
    build(graph)
    assert graph._network is network
