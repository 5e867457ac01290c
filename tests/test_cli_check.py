"""`mla-numba dump` and `mla-numba check`: what they write, say and return."""

import json

import ml_dtypes
import numpy as np
import pytest
from helpers.cli import invoke, run_cli

from mla_numba import MlaDims, MlaProlog, __version__
from mla_numba.dump_names import INPUTS, OUTPUTS
from mla_numba.dumps import read_dump

BF16 = np.dtype(ml_dtypes.bfloat16)
DIMS = "64,2,32,64,16,32"  # more than one NZ run in a row of both caches


def dump(folder, *options):
    result = invoke("dump", folder, "--dims", DIMS, "--tokens", 5, "--block-size", 4, *options)
    assert result.exit_code == 0, result.output
    return folder


def add_outputs(folder):
    """The outputs of the kernels beside the goldens, under the reference operator's names."""
    found = read_dump(folder)
    cache = found.cache.copy()
    out = MlaProlog(found.weights, n_threads=1)(found.x, found.cos, found.sin, found.cache_index, cache)
    for name, array in (out._asdict() | cache.arrays()).items():
        np.save(folder / f"{name}_out.npy", array)
    return folder


def flip(folder, name, index, bit=0):
    array = np.load(folder / f"{name}.npy")
    bits = array.view(f"u{array.itemsize}")
    bits[index] ^= 1 << bit
    np.save(folder / f"{name}.npy", array)


def rows_of(text):
    """The table's cells by output."""
    lines = [line.split() for line in text.splitlines()]
    return {cells[0]: cells for cells in lines if len(cells) > 3 and cells[0] in OUTPUTS}


def test_as_a_process(tmp_path):
    """What a developer does: golden data, his operator's outputs beside them, a verdict and an exit status."""
    folder = tmp_path / "dump"
    options = ("--dims", DIMS, "--tokens", 5, "--names", "pypto", "--format", "bin", "--nz")
    status, said, err = run_cli("dump", folder, *options)
    assert status == 0, err
    assert said.startswith(f"{folder}: 23 files, ")
    assert "wUqQr.bin" in {path.name for path in folder.glob("*")}
    status, said, err = run_cli("check", folder)
    assert status == 1
    assert said.startswith("no operator's outputs are here: what follows are the goldens that mla-numba dump wrote")
    status, said, err = run_cli("check", folder, "--golden")
    assert status == 0, err
    assert said.startswith("5 tokens, mode b, pypto numerics, PA_BSND, dims 64,2,32,64,16,32")
    assert "7 of 7 outputs pass" in said
    assert said.splitlines()[-1].endswith("; 7 exact to the bit")
    bits = np.fromfile(folder / "q_golden.bin", np.uint16)
    bits[[132, 200, 300, 400]] ^= 1 << 9  # 2 * 64 elements a token
    bits.tofile(folder / "q_golden.bin")
    status, said, err = run_cli("check", folder)  # a golden that was replaced is an operator's output
    assert status == 1
    assert "query_nope_out: 4 of 640 elements differ, first at [1, 0, 4]: expected " in said
    assert "Traceback" not in err


def test_one_flipped_bit_is_found_and_placed(tmp_path):
    folder = add_outputs(dump(tmp_path / "dump"))
    result = invoke("check", folder)
    assert result.exit_code == 0, result.output
    assert {row[-2] for row in rows_of(result.stdout).values()} == {"exact"}
    flip(folder, "query_rope_out", (3, 1, 9))
    result = invoke("check", folder)
    assert result.exit_code == 0, result.output  # a unit in the last place is within the tolerance
    row = rows_of(result.stdout)["query_rope_out"]
    assert (row[1], row[2], row[-2], row[-1]) == ("320", "1", "passed", "query_rope_out.npy")
    assert "query_rope_out: 1 of 320 elements differ, first at [3, 1, 9]: expected " in result.stdout
    assert "tolerance 0.005 + 0.0078125 |expected|, 0.5% of all beyond it" in result.stdout
    result = invoke("check", folder, "--exact")
    assert result.exit_code == 1
    assert rows_of(result.stdout)["query_rope_out"][-2] == "FAILED"
    assert "6 of 7 outputs pass, equal bits demanded; 6 exact to the bit" in result.stdout


def test_a_nan_and_a_changed_row(tmp_path):
    folder = add_outputs(dump(tmp_path / "dump"))
    array = np.load(folder / "query_nope_out.npy")
    array.view(np.uint16)[4, 0, 7] = 0x7FC0
    np.save(folder / "query_nope_out.npy", array)
    untouched = sorted(set(range(12)) - set(np.load(folder / "cache_index.npy").tolist()))
    flip(folder, "kr_cache_out", (untouched[1] // 4, untouched[1] % 4, 0, 3))
    (folder / "q_norm_scale_out.npy").unlink()
    (folder / "dump_of_something.bin").touch()
    result = invoke("check", folder)
    assert result.exit_code == 1
    assert "NaNs: expected none, got 1, first at [4, 0, 7]" in result.stdout
    expected = f"rows that no token names: expected as they were, got 1 others, the first in slot {untouched[1]}"
    assert expected in result.stdout
    assert "not there, so not checked: q_norm_scale_out" in result.stdout
    assert "goldens beside outputs, not checked: 7 files" in result.stdout
    assert "of no argument, not read: dump_of_something.bin" in result.stdout
    assert "4 of 6 outputs pass" in result.stdout


def test_json(tmp_path):
    folder = add_outputs(dump(tmp_path / "dump", "--quant", "ab", "--smooth", "--seed", 7))
    flip(folder, "k_scale_cache_out", (0, 0, 0, 0), bit=29)
    (folder / "q_norm_out.npy").unlink()
    result = invoke("check", folder, "--json")
    assert result.exit_code == 1
    said = json.loads(result.stdout)
    assert (said["version"], said["passed"], said["exact_demanded"]) == (__version__, False, False)
    assert (said["tokens"], said["quant"], said["smooth"]) == (5, "ab", True)
    assert list(said["settings"]["dims"].values()) == [64, 2, 32, 64, 16, 32]
    assert said["missing"] == ["q_norm_out"]
    assert len(said["goldens_left_out"]) == 7
    by_name = {output["name"]: output for output in said["outputs"]}
    assert list(by_name) == list(OUTPUTS)[1:]
    assert by_name["query_nope_out"]["exact"]
    assert by_name["query_nope_out"]["mismatch"] is None
    wrong = by_name["k_scale_cache_out"]
    assert (wrong["passed"], wrong["n_beyond"], wrong["mismatch"]["first"]) == (False, 1, [0, 0, 0, 0])
    assert wrong["share_beyond"] == 1 / 48
    assert wrong["tolerance"] == {"absolute": 2.5e-5, "relative": 0.005, "share": 0}


def test_options_come_before_the_folder_s_settings(tmp_path):
    folder = dump(tmp_path / "dump", "--numerics", "cann", "--epsilon-cq", "1e-3", "--epsilon-ckv", "2e-3")
    assert invoke("check", folder, "--exact", "--golden").exit_code == 0
    for option in (("--numerics", "pypto"), ("--epsilon-cq", "1e-5"), ("--epsilon-ckv", "1e-5")):
        assert invoke("check", folder, "--exact", "--golden", *option).exit_code == 1
    result = invoke("check", folder, "--dims", "64,2,32,64,16,30")
    assert result.exit_code == 1
    assert "dequant_scale (dequant_scale.npy): expected shape (92), got (96, 1)" in result.stderr


def test_layouts_and_sizes_of_bin_files(tmp_path):
    folder = dump(tmp_path / "dump", "--format", "bin", "--nz", "--cache-mode", "PA_NZ", "--blocks", 6)
    (folder / "dims.json").unlink()
    options = ["--dims", DIMS, "--block-size", 4, "--cache-mode", "PA_NZ", "--nz", "--exact", "--golden"]
    result = invoke("check", folder, *options)
    assert result.exit_code == 0, result.output
    assert "PA_NZ" in result.stdout.splitlines()[0]
    assert invoke("check", folder, *options, "--nd").exit_code == 1
    assert invoke("check", folder, *options, "--cache-mode", "PA_BSND").exit_code == 1
    result = invoke("check", folder)  # DeepSeek-V3.2's
    assert result.exit_code == 1
    assert "expected 98304 bytes, (24576) float32 or 49152 bytes, (24576) float16, got 384 bytes" in result.stderr


@pytest.mark.parametrize("quant", ["none", "a", "b", "ab"])
def test_each_mode(tmp_path, quant):
    folder = add_outputs(dump(tmp_path / "dump", "--quant", quant, "--cache-mode", "PA_NZ"))
    result = invoke("check", folder, "--exact")
    assert result.exit_code == 0, result.output
    assert f"mode {quant}, pypto numerics, PA_NZ" in result.stdout
    assert len(rows_of(result.stdout)) == (7 if "b" in quant else 5)


def test_scales_in_half_precision(tmp_path):
    folder = dump(tmp_path / "dump", "--scales", "float16")
    assert np.load(folder / "k_scale_cache_golden.npy").dtype == np.float16
    assert invoke("check", folder, "--exact", "--golden").exit_code == 0


def test_what_is_refused(tmp_path):
    folder = dump(tmp_path / "dump")
    result = invoke("dump", folder, "--dims", DIMS)
    assert result.exit_code == 1
    assert "token_x.npy: expected no such file, got one" in result.stderr
    assert "expected with --quant b or ab" in invoke("dump", tmp_path / "x", "--smooth", "--quant", "a").output
    result = invoke("dump", tmp_path / "x", "--dims", DIMS, "--tokens", 200, "--blocks", 1)
    assert result.exit_code == 1
    assert "n_blocks: expected at least 2, got 1" in result.stderr
    assert not (tmp_path / "x").exists()
    for path in folder.glob("*_golden.npy"):
        path.unlink()
    result = invoke("check", folder)
    assert result.exit_code == 1
    assert f"expected at least one of {', '.join(OUTPUTS)}, got inputs only" in result.stderr
    (folder / "gamma_cq.npy").unlink()
    result = invoke("check", folder)
    assert result.exit_code == 1
    assert f"expected {', '.join(INPUTS)} as .npy or .bin or .pt, got cache_index.npy" in result.stderr
    assert "gamma_cq, or rmsnorm_gamma_cq, input_6" in result.stderr
    assert "expected a folder, got none" in invoke("check", tmp_path / "nothing").stderr
    assert invoke("check").exit_code == 2
    assert invoke("check", folder, "--cache-mode", "NZ").exit_code == 2


@pytest.mark.fullsize
def test_deepseek_s_dimensions_are_the_default(tmp_path):
    folder = tmp_path / "dump"
    result = invoke("dump", folder, "--format", "bin", "--tokens", 3)
    assert result.exit_code == 0, result.output
    (folder / "dims.json").unlink()
    found = read_dump(folder)
    assert found.weights.dims == MlaDims.deepseek_v32()
    result = invoke("check", folder, "--exact", "--golden")
    assert result.exit_code == 0, result.output
    assert "7 of 7 outputs pass" in result.stdout
