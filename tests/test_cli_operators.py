"""`mla-numba dump` and `check` for the operators beside the prolog, as a developer runs them."""

import json

import numpy as np
import pytest
from helpers.cli import invoke, run_cli

import mla_numba as mla
from mla_numba.dumps import read_dump

DIMS = ("--dims", "64,2,32,64,16,32", "--tokens", 4, "--block-size", 4)
INDEXER = ("--indexer-heads", 4, "--indexer-head-dim", 32)
LISTS = ("--k", 6, "--sequences", 2, "--context", 20)
COMMANDS = {
    "lightning_indexer_prolog_quant": (*DIMS, *INDEXER, "--rope", "interleaved", "--epsilon-k", "1e-4"),
    "mla_indexer_prolog_quant": (*DIMS, *INDEXER, "--quant", "ab", "--smooth", "--nz", "--cache-mode", "PA_NZ"),
    "lightning_indexer_quant": ("--tokens", 4, "--block-size", 4, *INDEXER, *LISTS),
    "sparse_flash_attention_quant": (*DIMS, *LISTS, "--scales", "float16", "--softmax-scale", "0.2"),
    "sparse_attention_antiquant": ("--dims", "64,2,32,512,16,64", *DIMS[2:], *LISTS, "--record-order", "flashmla"),
}


def dump(folder, operator, *options):
    result = invoke("dump", folder, "--operator", operator, *COMMANDS[operator], *options)
    assert result.exit_code == 0, result.output
    return folder


def test_as_a_process(tmp_path):
    """Golden data, an operator's output that is wrong in one place beside them, a verdict and an exit status."""
    folder, operator = tmp_path / "dump", "lightning_indexer_prolog_quant"
    options = (*COMMANDS[operator], "--format", "bin", "--names", "pypto")
    status, said, err = run_cli("dump", folder, "--operator", operator, *options)
    assert status == 0, err
    assert said.startswith(f"{folder}: 23 files, ")
    assert "w_idx_qb.bin" in {path.name for path in folder.glob("*")}
    codes = np.fromfile(folder / "query_golden.bin", np.int8)
    codes[130] ^= 64  # 4 * 32 elements a token
    codes.tofile(folder / "q_int8_out.bin")
    status, said, err = run_cli("check", folder)
    assert status == 1
    assert said.startswith(f"{operator}: 4 tokens, PA_BSND, 4 x 32, rope interleaved")
    assert "q_int8_out: 1 of 512 elements differ, first at [1, 0, 2]: expected " in said
    assert "goldens beside outputs, not checked: 5 files" in said
    assert "not there, so not checked: q_scale_out, k_int8_out, k_scale_out, weights_out" in said
    assert "0 of 1 outputs pass" in said
    assert "Traceback" not in err


@pytest.mark.parametrize("operator", COMMANDS)
def test_goldens_pass_for_nobody_and_are_exact(tmp_path, operator):
    folder = dump(tmp_path / "dump", operator)
    result = invoke("check", folder)
    assert result.exit_code == 1
    assert result.stdout.startswith("no operator's outputs are here")
    result = invoke("check", folder, "--golden", "--exact", "--json")
    assert result.exit_code == 0, result.output
    said = json.loads(result.stdout)
    assert (said["passed"], said["only_goldens"], said["tokens"]) == (True, True, 4)
    assert said["settings"]["operator"] == operator
    given = dict(zip(COMMANDS[operator][::2], COMMANDS[operator][1::2], strict=False))
    for option in ("--k", "--block-size", "--record-order", "--indexer-heads"):
        if option in given:
            assert said["settings"][option[2:].replace("-", "_")] == given[option]
    assert all(output["exact"] and output["passed"] for output in said["outputs"])
    (folder / "golden.json").unlink()  # then they are another oracle's
    assert invoke("check", folder).exit_code == 0


def test_lists_are_reported_token_by_token(tmp_path):
    folder = dump(tmp_path / "dump", "lightning_indexer_quant")
    index = np.load(folder / "topk_res_golden.npy")
    index[1, 0, :2] = index[1, 0, 1::-1]
    np.save(folder / "topk_res.npy", index)
    result = invoke("check", folder)
    assert result.exit_code == 0, result.output
    assert "topk_res: 2 of 24 elements differ, first at [1, 0]: expected " in result.stdout
    assert "topk_res: 3 of 4 lists equal, 1 in another order, 0 with others of close scores, 0 wrong" in result.stdout
    result = invoke("check", folder, "--exact")
    assert result.exit_code == 1
    assert "0 of 1 outputs pass, equal bits demanded" in result.stdout
    index[3, 0, 0] = 1000
    np.save(folder / "topk_res.npy", index)
    result = invoke("check", folder)
    assert result.exit_code == 1
    assert "1 wrong; first at token 3: expected " in result.stdout
    said = json.loads(invoke("check", folder, "--json").stdout)
    assert said["outputs"][0]["lists"]["first_wrong"] == 3


def test_the_kernels_pass_and_a_changed_byte_does_not(tmp_path):
    folder = dump(tmp_path / "dump", "mla_indexer_prolog_quant")
    found = read_dump(folder)
    call, cache, keys = found.prolog, found.prolog.cache.copy(), found.keys.copy()
    out = mla.MlaProlog(call.weights, indexer=found.indexer, n_threads=1)(
        call.x, call.cos, call.sin, call.cache_index, cache, indexer_cache=keys
    )
    written = {f"mla_{name}": array for name, array in (out._asdict() | cache.arrays()).items()}
    written |= {"ip_q_int8": out.indexer.query, "ip_q_scale": out.indexer.query_scale, "ip_k_int8": keys.k}
    written |= {"ip_k_scale": keys.k_scale, "ip_weights": out.indexer.weights}
    for name, array in written.items():
        np.save(folder / f"{name}_out.npy", array)
    result = invoke("check", folder, "--exact")
    assert result.exit_code == 0, result.output
    assert "12 of 12 outputs pass" in result.stdout
    slot = min(set(range(8)) - set(call.cache_index.tolist()))
    keys.k_scale.view(np.uint16)[slot // 4, slot % 4] ^= 1
    np.save(folder / "ip_k_scale_out.npy", keys.k_scale)
    result = invoke("check", folder)
    assert result.exit_code == 1
    line = f"rows that no token names: expected as they were, got 1 others, the first in slot {slot}"
    assert line in result.stdout


def test_a_folder_without_dims_json(tmp_path):
    folder = dump(tmp_path / "dump", "sparse_flash_attention_quant", "--format", "bin", "--names", "numbers")
    (folder / "dims.json").unlink()
    options = ("--dims", DIMS[1], "--block-size", 4, "--golden", "--exact")
    result = invoke("check", folder, *options)
    assert result.exit_code == 1
    assert (
        "softmax_scale: expected a number (softmax_scale in dims.json, or --softmax-scale), got none" in result.stderr
    )
    result = invoke("check", folder, *options, "--softmax-scale", "0.2")
    assert result.exit_code == 0, result.output
    result = invoke("check", folder, *options, "--operator", "mla_prolog_quant")
    assert result.exit_code == 1
    assert "of mla_prolog_quant expected token_x, " in result.stderr


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("--operator", "lightning_indexer_quant", "--numerics", "cann"), "--numerics: expected without --operator"),
        (("--operator", "lightning_indexer_quant", "--quant", "ab"), "quant: expected one of b, got 'ab'"),
        (("--sequences", 2), "--sequences: expected without --operator mla_prolog_quant, which has none"),
        (("--softmax-scale", "nan"), "expected a finite number, got nan"),
        (("--operator", "prolog"), "'prolog' is not one of 'mla_prolog_quant', "),
    ],
)
def test_options_that_an_operator_does_not_have(tmp_path, arguments, text):
    result = invoke("dump", tmp_path / "dump", *arguments)
    assert result.exit_code == 2
    assert text in result.output
    assert not (tmp_path / "dump").exists()


def test_check_refuses_options_that_the_folder_s_operator_does_not_have(tmp_path):
    folder = dump(tmp_path / "dump", "lightning_indexer_quant")
    result = invoke("check", folder, "--golden", "--nz")
    assert result.exit_code == 2
    assert "--nz: expected without --operator lightning_indexer_quant, which has none" in result.output
    for path in folder.glob("*_golden.npy"):
        path.unlink()
    result = invoke("check", folder)
    assert result.exit_code == 1
    assert "expected at least one of topk_res, got inputs only" in result.stderr
