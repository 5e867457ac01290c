"""`mla-numba pack`: from a checkpoint folder to a file that computes what the checkpoint's weights do."""

import json

import pytest
from click.testing import CliRunner
from helpers import assert_same_bits, make_call, make_inputs
from helpers.checkpoint_maker import make_checkpoint

from mla_numba import Checkpoint, IndexerDims, MlaDims, MlaProlog, PackedIndexer
from mla_numba.cli.main import main
from mla_numba.oracle.bits import reference_run

DIMS = MlaDims(130, 3, 50, 68, 33, 34)


def invoke(*args):
    return CliRunner().invoke(main, ["pack", *map(str, args)])


@pytest.fixture
def folder(tmp_path):
    make_checkpoint(tmp_path / "model", DIMS)
    return tmp_path / "model"


@pytest.mark.parametrize("quant", ["b", "none"])
def test_the_file_computes_what_the_checkpoint_s_weights_do(folder, tmp_path, quant):
    out = tmp_path / "layer1.mla"
    result = invoke(folder, "--layer", 1, "--out", out, "--quant", quant, "--threads", 1)
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[-1].startswith(f"{out}: {out.stat().st_size / 1e6:.2f} MB, maps in ")
    for step in (f"reading layer 1, mode {quant}", "packing weights", "writing the file", "verifying the file"):
        assert step in result.stderr
    weights = Checkpoint(folder).load_layer(1, quant).weights
    prolog = MlaProlog.load(out, n_threads=1)
    inputs = make_inputs(DIMS, 4, 32)
    call = make_call(DIMS, prolog.quantized, 4, 2, 16)
    want = reference_run(weights, *inputs, call.cache)
    prolog(*inputs, call.cache, call.out)
    call.assert_equals(want)


def test_json_and_an_older_file(folder, tmp_path):
    out = tmp_path / "file"
    out.write_bytes(b"older")
    result = invoke(folder, "--layer", 0, "--out", out, "--json")
    assert result.exit_code == 0, result.output
    said = json.loads(result.stdout)
    assert said["out"] == str(out)
    assert said["bytes"] == out.stat().st_size
    assert 0 < said["load_s"] < 60
    assert next(iter(said["seconds"])) == "reading layer 0, mode b"
    got, want = MlaProlog.load(out).weights, Checkpoint(folder).load_layer(0).weights.pack()
    assert_same_bits("up", got.up.panels, want.up.panels)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "model"]


@pytest.mark.parametrize("quant", ["b", "none"])
def test_int8_of_the_checkpoint_is_packed_as_it_is(tmp_path, quant):
    make_checkpoint(tmp_path / "model", DIMS, dtype="int8 rows", layers=(0,))
    out = tmp_path / "file"
    result = invoke(tmp_path / "model", "--layer", 0, "--out", out, "--quant", quant, "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["quantization"] is None  # no error is ours
    got, want = MlaProlog.load(out).weights, Checkpoint(tmp_path / "model").load_layer(0, quant).weights.pack()
    for name in ("down", "up", "uk"):
        assert_same_bits(name, getattr(got, name).panels, getattr(want, name).panels)


@pytest.fixture
def with_indexers(tmp_path):
    """A model of two layers, of which the second has an indexer of two heads."""
    dims = MlaDims(130, 3, 50, 68, 10, 10)
    make_checkpoint(tmp_path / "model", dims, dtype="bf16", indexer=IndexerDims(130, 50, 2, 32, 10))
    return tmp_path / "model"


def test_an_indexer_has_a_file_of_its_own(with_indexers, tmp_path):
    out, indexer_out = tmp_path / "layer1.mla", tmp_path / "layer1.indexer.mla"
    args = (with_indexers, "--layer", 1, "--out", out, "--indexer-out", indexer_out)
    result = invoke(*args)
    assert result.exit_code == 0, result.output
    ends = [line.partition(" MB, maps in ")[0] for line in result.stdout.splitlines() if " MB, maps in " in line]
    assert ends == [f"{path}: {path.stat().st_size / 1e6:.2f}" for path in (out, indexer_out)]
    assert result.stdout.count("w_uq_qr") == result.stdout.count("w_qb") == 1  # what quantising them did
    assert "reading the indexer of layer 1" in result.stderr
    got, want = PackedIndexer.load(indexer_out), Checkpoint(with_indexers).load_indexer(1).pack()
    for name in ("down", "up", "hadamard_q", "hadamard_k"):
        assert_same_bits(name, getattr(got, name).panels, getattr(want, name).panels)
    assert MlaProlog.load(out, indexer=got).indexer is got
    said = json.loads(invoke(*args, "--json", "--shard", "1/3").stdout)
    assert said["indexer"]["out"] == str(indexer_out)
    assert said["indexer"]["bytes"] == indexer_out.stat().st_size
    assert "w_qb" in said["indexer"]["quantization"]
    assert list(said["seconds"])[1] == "reading the indexer of layer 1"
    assert_same_bits("up of a shard's indexer", PackedIndexer.load(indexer_out).up.panels, want.up.panels)


def test_nothing_is_written_where_there_is_no_indexer(with_indexers, tmp_path):
    out, indexer_out = tmp_path / "layer.mla", tmp_path / "indexer.mla"

    def refused(*options):
        result = invoke(with_indexers, "--out", out, "--indexer-out", *options)
        assert "Traceback" not in result.output
        assert [path.name for path in tmp_path.iterdir()] == ["model"]
        return result.exit_code, result.stderr

    status, said = refused(indexer_out, "--layer", 0)
    assert status == 1
    assert "layer: expected one of 1 in" in said
    status, said = refused(indexer_out, "--layer", 1, "--quant", "none")
    assert status == 2
    assert "--indexer-out: expected with --quant b or ab, got --quant none" in said
    status, said = refused(tmp_path / "model" / ".." / "layer.mla", "--layer", 1)
    assert status == 2
    assert "--indexer-out: expected another file than --out, got " in said
    status, said = refused(tmp_path / "no" / "file", "--layer", 1)
    assert status == 2
    assert "'--indexer-out': expected a file in a folder that exists" in said


def test_faults_are_one_line(folder, tmp_path):
    out = tmp_path / "file"
    result = invoke(folder, "--layer", 7, "--out", out)
    assert result.exit_code == 1
    assert "Error: layer: expected one of 0 to 1 in" in result.stderr
    result = invoke(folder, "--layer", 0, "--out", tmp_path / "no" / "file")
    assert result.exit_code == 2
    assert "'--out': expected a file in a folder that exists, got " in result.stderr
    assert "reading layer" not in result.stderr
    (folder / "config.json").write_text(json.dumps({"q_lora_rank": None, "hidden_size": 8, "num_attention_heads": 1}))
    result = invoke(folder, "--layer", 0, "--out", out)
    assert result.exit_code == 1
    assert "config.q_lora_rank: expected an int, got none" in result.stderr
    assert "Traceback" not in result.output
    assert not out.exists()


def test_options():
    assert "Missing argument 'CHECKPOINT'" in invoke("--layer", 0, "--out", "file").output
    assert "does not exist" in invoke("no such folder", "--layer", 0, "--out", "file").output
    assert "Missing option '--layer'" in invoke(".", "--out", "file").output
    assert "'fp8' is not one of" in invoke(".", "--layer", 0, "--out", "file", "--quant", "fp8").output
