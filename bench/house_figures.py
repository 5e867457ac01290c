"""Count what stands in each room of the library: modules, lines of the longest function, the most parameters.

`python bench/house_figures.py` prints the table of docs/architecture.md, `--write` puts it into the page, between
`<!-- figures -->` and `<!-- /figures -->`.

A room is a folder of modules. Parameters are counted without self and cls, and not of commands, whose parameters are
the options of the command line. An import runs up where the room that it leads to imports, directly or not, the room
that it comes from; then no order of the rooms has all imports run one way. A module beside subfolders counts as a room
of its own there, and imports for type checkers count too.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import click

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "architecture.md"
PACKAGES = ("tiling", "mla_numba")
PLACE = re.compile(r"(<!-- figures -->).*?(<!-- /figures -->)", flags=re.S)

Function = ast.FunctionDef | ast.AsyncFunctionDef


def find_modules(root: Path) -> dict[str, Path]:
    """The files of the library, by the dotted names of their modules."""
    found = {}
    for package in PACKAGES:
        for path in sorted((root / package).rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def parse(modules: dict[str, Path]) -> dict[str, ast.Module]:
    """The syntax trees of the modules."""
    return {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in modules.items()}


def folder_of(name: str, path: Path) -> str:
    """The package that a module lies in, or is."""
    return name if path.name == "__init__.py" else name.rpartition(".")[0]


def functions(tree: ast.Module) -> list[Function]:
    """All functions and methods, inner ones too."""
    return [node for node in ast.walk(tree) if isinstance(node, Function)]


def n_lines(function: Function) -> int:
    """Lines from `def` to the end, without those of the docstring: what is said of each argument is no code."""
    said = function.body[0] if ast.get_docstring(function, clean=False) is not None else None
    n_said = 0 if said is None else (said.end_lineno or said.lineno) - said.lineno + 1
    return (function.end_lineno or function.lineno) - function.lineno + 1 - n_said


def n_parameters(function: Function) -> int:
    """Parameters without self and cls; none of a command."""
    if any(".command(" in ast.unparse(decorator) for decorator in function.decorator_list):
        return 0
    a = function.args
    names = [arg.arg for arg in (*a.posonlyargs, *a.args, *a.kwonlyargs, a.vararg, a.kwarg) if arg is not None]
    return len(names) - (names[:1] in (["self"], ["cls"]))


def imports(name: str, path: Path, tree: ast.Module, modules: dict[str, Path]) -> Iterator[str]:
    """Modules of the library that a module imports, inside functions and for type checkers too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in modules)
        if isinstance(node, ast.ImportFrom):
            above = folder_of(name, path).split(".")
            base = node.module or ""
            if node.level:
                base = ".".join([*above[: len(above) - node.level + 1], *([base] if base else [])])
            for alias in node.names:
                yield from [inner for inner in (f"{base}.{alias.name}", base) if inner in modules][:1]


def reachable(start: str, arrows: dict[str, set[str]]) -> set[str]:
    """Rooms that a room imports, directly or through others."""
    found: set[str] = set()
    new = {start}
    while new:
        new = {end for room in new for end in arrows.get(room, ())} - found
        found |= new
    return found


def imports_up(modules: dict[str, Path], trees: dict[str, ast.Module]) -> list[tuple[str, str]]:
    """Pairs of modules whose import no order of the rooms has run down."""
    folders = {folder_of(name, path) for name, path in modules.items()}
    split = {folder for folder in folders if any(other.startswith(f"{folder}.") for other in folders)}
    room = {name: name if (folder := folder_of(name, path)) in split else folder for name, path in modules.items()}
    pairs = {(a, b) for a, path in modules.items() for b in imports(a, path, trees[a], modules)}
    arrows: dict[str, set[str]] = {}
    for a, b in pairs:
        arrows.setdefault(room[a], set()).update({room[b]} - {room[a]})
    return sorted((a, b) for a, b in pairs if room[a] != room[b] and room[a] in reachable(room[b], arrows))


def table(root: Path = ROOT) -> str:
    """The figures as a table of Markdown, and a line with those of the whole."""
    modules = find_modules(root)
    trees = parse(modules)
    rooms: dict[str, list[str]] = {}
    for name, path in modules.items():
        if trees[name].body[1:] or path.name != "__init__.py":  # more than the docstring of a folder of folders
            rooms.setdefault(folder_of(name, path), []).append(name)
    lines = ["| room | modules | longest function, lines | most parameters |", "|---|---|---|---|"]
    for room, names in sorted(rooms.items(), key=lambda item: (item[0].split(".")[0] == "mla_numba", item[0])):
        inside = [function for name in names for function in functions(trees[name])]
        longest = max(map(n_lines, inside), default=0)
        most = max(map(n_parameters, inside), default=0)
        lines.append(f"| {room.replace('.', '/')}/ | {len(names)} | {longest} | {most} |")
    up = len(imports_up(modules, trees))
    return "\n".join([*lines, "", f"{len(modules)} modules in {len(rooms)} rooms. Imports that run up: {up}."])


def fill(page: str, figures: str) -> str:
    """The page with the table put in its place."""
    return PLACE.sub(lambda found: f"{found[1]}\n\n{figures}\n\n{found[2]}", page)


@click.command()
@click.option("--write", is_flag=True, help="Put the table into docs/architecture.md.")
@click.option("--up", is_flag=True, help="List the imports that run up.")
def main(write: bool, up: bool) -> None:
    """Print the figures of the rooms."""
    if up:
        modules = find_modules(ROOT)
        click.echo("\n".join(f"{a} imports {b}" for a, b in imports_up(modules, parse(modules))))
        return
    click.echo(table())
    if write:
        PAGE.write_text(fill(PAGE.read_text(encoding="utf-8"), table()), encoding="utf-8")


if __name__ == "__main__":
    main()
