"""What `--help` says is whole, at whatever width."""

from dataclasses import fields

import pytest
from helpers.cli import invoke

from mla_numba.cli.main import main
from tiling import CpuTiling, CubeTile, MlaTileConfig


def words(text):
    return " ".join(text.split())


@pytest.mark.parametrize("columns", ["50", "80", "200"])
def test_the_first_sentence_of_every_command_is_whole(columns, monkeypatch):
    monkeypatch.setenv("COLUMNS", columns)
    said = invoke("--help").output
    assert "..." not in said.partition("Commands:")[2]
    for name, command in main.commands.items():
        first = command.help.partition("\n\n")[0].removesuffix(".")
        assert f"{name} {words(first)}" in words(said)


@pytest.mark.parametrize("name", main.commands)
def test_lines_are_as_wide_as_the_terminal_up_to_120(name, monkeypatch):
    heights = {}
    for columns in (60, 100, 120, 300):
        monkeypatch.setenv("COLUMNS", str(columns))
        said = invoke(name, "--help").output
        assert "..." not in said.replace("T,...", "").replace("(q_norm_out, ...)", "")
        heights[columns] = len(said.splitlines())
        if columns > 60:  # words such as the list of presets are wider than that
            assert max(map(len, said.splitlines())) <= min(columns, 120)
    assert heights[60] >= heights[100] >= heights[120] == heights[300]


def test_sweep_names_the_fields():
    said = words(invoke("sweep", "--help").output)
    for kind in (CpuTiling, MlaTileConfig, CubeTile):
        assert ", ".join(field.name for field in fields(kind)) in said
