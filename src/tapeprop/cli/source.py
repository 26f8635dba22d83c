"""The graph that a user names on the command line: "digits", a saved graph, a Python file, or module:object.

A Python file is run as a module, so what stands under `if __name__ == "__main__":` is not. Its folder comes first on `sys.path` and
`sys.argv` holds its path alone, as when Python runs it; what it prints goes to stderr. Its graph is what the first of these finds:

1. a `LayerGraph` of the module called graph, model, net or network;
2. any other `LayerGraph` of the module;
3. a function or `LayerGraph` class of such a name, or with build, make, create or get before it, that needs no argument;
4. a function of the file that is annotated to give a `LayerGraph` (or several: a tuple, list or dict), or a `LayerGraph` class of the
   file, that needs no argument. Not `main`, which trains as a rule.

Names with a leading underscore are left out. Where one step finds several, an error names them: `file.py:name` chooses, as it does
whatever none of the steps would find. `name` may be dotted; a number in it is a place in a tuple or list, `networks.0`.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import importlib
import inspect
import os
import re
import sys
import sysconfig
import traceback
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tapeprop import LayerGraph

__all__ = ["HELP", "Source", "add_graph", "build", "guarded", "load", "user_code"]

HELP = '"digits", a graph saved with graph.save(), a Python file that defines a graph, or file.py:name or module:name'
_GRAPH = re.compile(r"graph|model|net|network", re.IGNORECASE)
_MAKER = re.compile(r"(build|make|create|get)|((build|make|create|get)_?)?(graph|model|net|network)", re.IGNORECASE)
_LISTS = (tuple, list)
_SEVERAL = (tuple, list, dict, typing.Union, types.UnionType)
_PYTHON = (".py", ".pyw")
_MOST_NAMED = 8


@dataclass(frozen=True)
class Source:
    """A graph and where it comes from.

    name: by which the command line finds exactly this one, as "resnet20.py:resnet20". graph: as it was found, built or not.
    input_shape: where the source knows it, None for open sizes. module: the Python module; None for other sources.
    """

    name: str
    graph: LayerGraph
    input_shape: tuple[int | None, ...] | None = None
    module: types.ModuleType | None = None


def add_graph(command: argparse.ArgumentParser, **options: Any) -> None:
    """Adds the argument `graph` to a command. options: of add_argument()."""
    command.add_argument("graph", help=HELP, **options)


def build(graph: LayerGraph, input_shape: Any = None, **changes: Any) -> LayerGraph:
    """The graph, built with the options of its last build() except for what is given and not None; one that needs nothing is left.

    It is a copy where its weights are stored in another dtype than the one asked for.
    """
    changes = {name: value for name, value in {"input_shape": input_shape, **changes}.items() if value is not None}
    options = graph.build_options() or {}
    if options and changes.get("dtype", graph.dtype) != graph.dtype:
        graph = copy.deepcopy(graph)
    if changes or not graph.built_:
        graph.build(**{**options, **changes})
    return graph


def load(text: str) -> Source:
    """The graph that `text` names: see the module.

    FileNotFoundError, ValueError or TypeError in one line where there is none, where there are several, or where the code raises;
    WeightFileError for a file that is no saved graph.
    """
    if text == "digits":
        from tapeprop.cli.digits import digits_network

        return Source(text, digits_network(), (32, 1, 8, 8))
    head, colon, name = text.rpartition(":")
    if Path(text).is_file():
        head, colon, name = text, "", ""
    if head.endswith(_PYTHON) or (not colon and text.endswith(_PYTHON)):
        path = head or text
        return _find(_run(path), path, name)
    if colon and not Path(head).is_file():
        return _find(_import(head, text), head, name)
    if colon:
        raise ValueError(
            f"{head!r} is no Python file (its name does not end in .py), so nothing in it can be called {name!r}"
        )
    return _saved(text)


def _saved(text: str) -> Source:
    if text and Path(text).is_dir():
        raise IsADirectoryError(f"{text!r} is a folder; expected {HELP}")
    if not Path(text).is_file():
        raise FileNotFoundError(f'{text!r} is neither "digits" nor a file; expected {HELP}')
    import tapeprop

    return Source(text, tapeprop.load(text))


# ---- modules


def _run(path: str) -> types.ModuleType:
    """The module that a file makes when it is run. No .pyc is written beside it."""
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"{path!r} is a folder" if file.is_dir() else f"there is no file {path!r}")
    name = file.stem
    while name in sys.modules:  # that of this file would take the place of another
        name += "_"
    module = types.ModuleType(name)
    module.__file__ = str(file)
    sys.argv = [path]
    sys.path.insert(0, str(file.resolve().parent))
    sys.modules[name] = module
    try:
        with user_code(path, path):
            exec(compile(file.read_bytes(), path, "exec", dont_inherit=True), vars(module))
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _import(name: str, text: str) -> types.ModuleType:
    """A module by its name, looked for in the working directory first, as `python -m` does."""
    if not all(part.isidentifier() for part in name.split(".")):
        raise FileNotFoundError(f'{text!r} is neither "digits" nor a file nor module:name; expected {HELP}')
    sys.argv = [name]
    sys.path.insert(0, "")
    with user_code(name):
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{name}.".startswith(f"{error.name}."):
                raise
    raise FileNotFoundError(f"there is no module {name!r}; for a file give its path, as folder/file.py:name")


@contextlib.contextmanager
def user_code(what: str, path: str | None = None) -> Iterator[None]:
    """What a user's code raises inside becomes a ValueError of one line; what it prints goes to stderr.

    what: begins the text. path: the file whose line is named; by default that of the innermost frame outside of tapeprop.
    """
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    except SyntaxError as error:
        raise ValueError(f"{error.filename or what}, line {error.lineno}: SyntaxError: {error.msg}") from error
    except (Exception, SystemExit) as error:
        text = (str(error).strip().splitlines() or [""])[0]
        kind = type(error).__name__
        place = _line(error, path)
        raise ValueError(f"{what}{place} raised {kind}{': ' if text else ''}{text}") from error


@contextlib.contextmanager
def guarded(what: str) -> Iterator[None]:
    """For calls of tapeprop that run a user's layers: as `user_code`, but GraphErrors, and errors that no line of the user's made, pass."""
    from tapeprop.errors import GraphError

    try:
        yield
    except GraphError:
        raise
    except Exception as error:
        if not _line(error, None) and not isinstance(error, MemoryError):
            raise
        with user_code(what):
            raise


def _line(error: BaseException, path: str | None) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    if path is not None:
        lines = [f", line {frame.lineno}" for frame in frames if frame.filename == path]
    else:
        installed = [sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")]
        others = ("<", str(Path(__file__).resolve().parents[1]), *installed)
        near = os.getcwd() + os.sep
        lines = [
            f" ({f.filename.removeprefix(near)}, line {f.lineno})" for f in frames if not f.filename.startswith(others)
        ]
    return lines[-1] if lines else ""


# ---- graphs in a module


class _NoGraph(TypeError):
    """What was looked at neither is nor gives a graph."""


def _find(module: types.ModuleType, where: str, name: str) -> Source:
    """The graph called `name`, or the one that the module defines."""
    if name:
        return _made(module, f"{where}:{name}", _resolve(module, where, name))
    for step in (_named_graphs, _graphs, _named_makers, _annotated_makers):
        found = step(module)
        if len(found) > 1:
            listed = _listed(f"{where}:{each}" for each in found)
            raise ValueError(f"{where} defines {len(found)} graphs; choose one: {listed}")
        for only, value in found.items():
            try:
                return _made(module, f"{where}:{only}", value)
            except _NoGraph:  # a function with a name that may mean something else, or an annotation that is wrong
                continue
    raise ValueError(f"{where} defines no graph{_remedy(module, where)}")


def _remedy(module: types.ModuleType, where: str) -> str:
    """What to do where nothing was found: name a function that could be meant, or write one."""
    functions = [
        name for name, value in _own(module) if inspect.isfunction(value) and name != "main" and _needs_nothing(value)
    ]
    if functions:
        return f"; if a function gives it, name that: {_listed(f'{where}:{name}' for name in functions)}"
    inside = " (what main() makes stays inside it)" if inspect.isfunction(vars(module).get("main")) else ""
    return f"{inside}; expected a LayerGraph at module level, or a function that needs no argument, annotated -> LayerGraph"


def _public(module: types.ModuleType) -> Iterator[tuple[str, Any]]:
    return ((name, value) for name, value in vars(module).items() if not name.startswith("_"))


def _own(module: types.ModuleType) -> Iterator[tuple[str, Any]]:
    """What was defined in the module, not imported."""
    return ((n, value) for n, value in _public(module) if getattr(value, "__module__", None) == module.__name__)


def _graphs(module: types.ModuleType) -> dict[str, Any]:
    """The graphs at module level by name; one of several names counts once."""
    from tapeprop import LayerGraph

    found: dict[str, Any] = {}
    for name, value in _public(module):
        if isinstance(value, LayerGraph) and not any(value is other for other in found.values()):
            found[name] = value
    return found


def _named_graphs(module: types.ModuleType) -> dict[str, Any]:
    return {name: value for name, value in _graphs(module).items() if _GRAPH.fullmatch(name)}


def _named_makers(module: types.ModuleType) -> dict[str, Any]:
    """What gives a graph by its name. An annotation that says something else counts against it."""
    return {name: value for name, value in _public(module) if _MAKER.fullmatch(name) and _may_give(value, unsaid=True)}


def _annotated_makers(module: types.ModuleType) -> dict[str, Any]:
    """What gives a graph by its annotation."""
    return {name: value for name, value in _own(module) if name != "main" and _may_give(value, unsaid=False)}


def _may_give(value: Any, unsaid: bool) -> bool:
    return _is_maker(value) and _needs_nothing(value) and _promises(value, unsaid)


def _is_maker(value: Any) -> bool:
    """Functions, those under a decorator that names what it wraps, and classes of graphs."""
    from tapeprop import LayerGraph

    if isinstance(value, type):
        return issubclass(value, LayerGraph) and value is not LayerGraph
    return _is_function(value)


def _is_function(value: Any) -> bool:
    return inspect.isroutine(value) or (callable(value) and hasattr(value, "__wrapped__"))


def _needs_nothing(value: Any) -> bool:
    try:
        parameters = inspect.signature(value).parameters.values()
    except (TypeError, ValueError):  # of some built-in functions nothing is known
        return False
    return all(p.default is not p.empty or p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in parameters)


def _promises(maker: Any, unsaid: bool) -> bool:
    """Whether a maker is annotated to give graphs; `unsaid` where it says nothing."""
    if isinstance(maker, type):
        return True
    function = inspect.unwrap(maker)
    annotations = getattr(function, "__annotations__", {})
    return (
        _means_graph(annotations["return"], getattr(function, "__globals__", {})) if "return" in annotations else unsaid
    )


def _means_graph(annotation: Any, scope: dict[str, Any]) -> bool:
    from tapeprop import LayerGraph

    if isinstance(annotation, str):
        try:
            annotation = eval(annotation, scope)
        except Exception:  # a name that only type checkers import
            return re.fullmatch(r"(\w+\.)*LayerGraph", annotation) is not None
    if typing.get_origin(annotation) in _SEVERAL:
        return any(_means_graph(part, scope) for part in typing.get_args(annotation))
    return isinstance(annotation, type) and issubclass(annotation, LayerGraph)


def _resolve(module: types.ModuleType, where: str, name: str) -> Any:
    """The object at a dotted name. A function on the way, that is not its end, is called for what lies in its result."""
    value: Any = module
    parts = name.split(".")
    for i, part in enumerate(parts):
        if i and (part.isdecimal() or _is_function(value)):
            value = _called(value, f"{where}:{'.'.join(parts[:i])}")
        try:
            value = _item(value, part)
        except (AttributeError, IndexError, KeyError, TypeError):
            inside = f" in {'.'.join(parts[:i])}" if i else ""
            there = (
                []
                if i
                else [name for name, value in _public(module) if name in _graphs(module) or _may_give(value, True)]
            )
            raise ValueError(
                f"{where} has no {part!r}{inside}{f'; it has {_listed(there)}' if there else ''}"
            ) from None
    return value


def _item(value: Any, part: str) -> Any:
    if isinstance(value, Mapping):
        return value[part]
    return value[int(part)] if part.isdecimal() else getattr(value, part)


def _called(value: Any, name: str) -> Any:
    """The result of a function or class; any other value itself."""
    from tapeprop import LayerGraph

    if isinstance(value, LayerGraph) or not callable(value):
        return value
    if not _needs_nothing(value):
        raise TypeError(f"{name} needs arguments; write a function without any that gives the graph, and name that one")
    with user_code(f"{name}()"):
        return value()


def _made(module: types.ModuleType, full: str, value: Any) -> Source:
    """The graph that `value` is, gives or holds; full: its name. _NoGraph where there is none, ValueError where there are several."""
    from tapeprop import LayerGraph

    result = _called(value, full)
    if isinstance(result, LayerGraph):
        return Source(full, result, module=module)
    entries = result.items() if isinstance(result, Mapping) else enumerate(result) if isinstance(result, _LISTS) else ()
    found = {f"{full}.{key}": entry for key, entry in entries if isinstance(entry, LayerGraph)}
    if len(found) > 1:
        raise ValueError(f"{full} gives {len(found)} graphs; choose one: {_listed(found)}")
    for key, graph in found.items():
        return Source(key, graph, module=module)
    raise _NoGraph(f"{full} {'is' if result is value else 'gives'} {_described(result)}, not a LayerGraph")


def _described(value: Any) -> str:
    return "None" if value is None else f"a value of type {type(value).__name__}"


def _listed(names: Iterable[str]) -> str:
    listed = list(names)
    more = len(listed) - _MOST_NAMED
    return ", ".join(listed[:_MOST_NAMED]) + (f" and {more} more" if more > 0 else "")
