"""What `mla-numba info` says of what was chosen, what is installed and what is kept."""

import json
import re
import tomllib
from dataclasses import replace

import numpy as np
import pytest
from helpers import ROOT
from helpers.cli import invoke, run_cli

from mla_numba import MlaDims, __version__
from mla_numba.call.planning import this_machine
from mla_numba.call.tuned import Tuned, save_rates, save_tuned
from mla_numba.cli import extras
from mla_numba.kernels import CHOICE, ISA, ISAS, threading_layer
from tiling import CpuTiling, Rates


def test_info_names_the_instruction_set_and_why():
    said = invoke("info").output
    assert f"{ISA.name}, {ISA.lanes} lanes of fp32: {CHOICE.reason}" in said
    assert f"can also run     {', '.join(CHOICE.others) or 'no other'} (MLA_NUMBA_ISA)" in said
    assert f"threading layer  {threading_layer()} (NUMBA_THREADING_LAYER)" in said


def test_info_names_extras_with_what_installs_the_missing(monkeypatch):
    monkeypatch.setattr(extras, "EXTRAS", {"numpy": "torch", "no-such-package": "plot"})
    result = invoke("info")
    assert f"numpy {np.__version__}, no no-such-package (pip install 'mla_numba[plot]')" in result.output


def test_extras_are_those_of_the_project():
    optional = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for name, extra in extras.EXTRAS.items():
        assert any(re.match(rf"{name}\b", requirement) for requirement in optional[extra]), name


def test_info_counts_what_was_tuned(monkeypatch, tmp_path):
    monkeypatch.setenv("MLA_NUMBA_TUNED", str(tmp_path))
    tuned = Tuned(CpuTiling(), t=4, ratio=1.0, n_trials=1, seconds=1.0, date="today")
    dims, rates = MlaDims(64, 2, 32, 32, 16, 16), Rates(1e9, 1e9, 1e9)
    for threads in (1, 2):
        save_tuned(this_machine(), __version__, dims, "b", threads, tuned)
    save_rates(this_machine(), __version__, 1, rates)
    save_rates(this_machine(), "0.0.1", 1, rates)
    save_rates(replace(this_machine(), name="another"), __version__, 1, rates)
    for name, text in {"no.json": "{}", "list.json": "[]", "rates-x.json": json.dumps({"key": {}})}.items():
        (tmp_path / name).write_text(text)
    result = invoke("info")
    assert f"{tmp_path} (2 tilings, 1 rates, 2 of other machines, settings or versions)" in result.output
    assert json.loads(invoke("info", "--json").output)["tuned"] == {
        "folder": str(tmp_path), "n_tilings": 2, "n_rates": 1, "n_others": 2
    }  # fmt: skip


def test_info_on_a_threading_layer_that_is_not_there(monkeypatch):
    def no_layer():
        raise ValueError("No threading layer could be loaded.")

    monkeypatch.setattr("mla_numba.cli.info.threading_layer", no_layer)
    monkeypatch.setenv("NUMBA_THREADING_LAYER", "tbb")
    assert "none: tbb cannot be loaded (NUMBA_THREADING_LAYER)" in invoke("info").output


def test_info_says_what_was_asked_for(tmp_path):
    settings = {"NUMBA_CACHE_DIR": str(tmp_path), "NUMBA_CPU_NAME": "generic"}
    status, out, err = run_cli("info", "--json", env=settings | {"MLA_NUMBA_ISA": "portable"})
    assert (status, err) == (0, "")
    facts = json.loads(out)
    assert (facts["isa"]["name"], facts["machine"]["isa"]) == ("portable", "portable")
    assert facts["isa_reason"] == "MLA_NUMBA_ISA=portable"
    assert facts["isa_lacking"]["portable"] == []
    assert set(facts["isa_lacking"]["avx2"]) == {"avx2", "fma"}
    facts = json.loads(run_cli("info", "--json", env=settings | {"MLA_NUMBA_ISA": ""})[1])
    assert facts["isa_reason"] == "none of the others is in NUMBA_CPU_NAME=generic"


@pytest.mark.parametrize(
    ("isa", "message"),
    [("sse9", f"expected one of {', '.join(ISAS)}, got 'sse9'"), ("avx2", r"NUMBA_CPU_NAME=generic has \(portable\)")],
)
def test_an_instruction_set_that_there_is_not(isa, message):
    status, _, err = run_cli("info", env={"MLA_NUMBA_ISA": isa, "NUMBA_CPU_NAME": "generic"})
    assert status == 1
    assert re.fullmatch(f"Error: MLA_NUMBA_ISA: .*{message}.*\n", err)
