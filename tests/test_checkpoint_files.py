"""Folders that others made: links, pipes, names that lead away, headers and numbers that ask for too much."""

import json
import os
import re
import struct
import tracemalloc
from dataclasses import asdict

import numpy as np
import pytest
from helpers import BF16, assert_same_bits
from helpers.checkpoint_maker import make_checkpoint, prefix, write_checkpoint

from mla_numba import Checkpoint, MlaDims

DIMS = MlaDims(20, 1, 6, 4, 3, 2)
V = 2
INDEX = "model.safetensors.index.json"
FIRST = "model-00001-of-00002.safetensors"
KV_B = f"{prefix(0)}kv_b_proj.weight"


@pytest.fixture
def folder(tmp_path):
    make_checkpoint(tmp_path / "model", DIMS, V)
    return tmp_path / "model"


def refusal(folder, error=ValueError):
    with pytest.raises(error) as caught:
        Checkpoint(folder).load_layer(0)
    return str(caught.value).replace(str(folder), "FOLDER")


def edit(path, **changes):
    value = json.loads(path.read_text())
    path.write_text(json.dumps(value | changes))


def place(folder, tensor, file):
    placed = json.loads((folder / INDEX).read_text())["weight_map"]
    edit(folder / INDEX, weight_map=placed | {tensor: file})


def rename(folder, index):
    """Shards of another name, as ModelSlim writes them."""
    for path in folder.glob("model-*"):
        path.rename(folder / path.name.replace("model-", "quant_model_weight-"))
    text = (folder / INDEX).read_text().replace("model-0000", "quant_model_weight-0000")
    (folder / INDEX).unlink()
    (folder / index).write_text(text)


class TestPlaces:
    def test_links_into_a_store_as_hugging_face_s_cache_has_them(self, tmp_path, folder):
        want = Checkpoint(folder).load_layer(0).weights
        blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "0123"
        blobs.mkdir()
        snapshot.mkdir(parents=True)
        for i, path in enumerate(sorted(folder.iterdir())):
            path.rename(blobs / str(i))
            (snapshot / path.name).symlink_to(f"../../blobs/{i}")
        got = Checkpoint(snapshot).load_layer(0).weights
        assert_same_bits("w_uq_qr", got.w_uq_qr, want.w_uq_qr)

    def test_shards_in_a_folder_within(self, folder):
        want = Checkpoint(folder).load_layer(0).weights
        (folder / "parts").mkdir()
        for path in folder.glob("model-*"):
            path.rename(folder / "parts" / path.name)
        (folder / INDEX).write_text((folder / INDEX).read_text().replace("model-0000", "parts/model-0000"))
        assert_same_bits("w_dq", Checkpoint(folder).load_layer(0).weights.w_dq, want.w_dq)

    @pytest.mark.parametrize(
        "name", ["../x", "/etc/passwd", "a/../../x", "..", ".", "", "C:\\x", "\\\\h\\x", "..\\x", "a\0b"]
    )
    def test_names_that_lead_out_of_the_folder(self, folder, name):
        place(folder, KV_B, name)
        want = f"FOLDER/{INDEX}: weight_map[{KV_B!r}]: expected the name of a file in the folder, got {name!r}"
        assert refusal(folder) == want

    @pytest.mark.parametrize("name", [None, 1, ["a"], {}])
    def test_names_that_are_none(self, folder, name):
        place(folder, KV_B, name)
        kind = type(name).__name__
        assert refusal(folder) == f"FOLDER/{INDEX}: weight_map[{KV_B!r}]: expected the name of a file, got {kind}"

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ("", "expected JSON, got "),
            ('{"weight_map": NaN}', "expected JSON, got the number NaN"),
            ("[" * 100_000, "expected a JSON object, got one that is nested too deeply"),
            ("null", "expected a JSON object, got NoneType"),
            ("{}", "expected weight_map to name the file of each tensor, got NoneType"),
        ],
        ids=["empty", "NaN", "deep", "null", "no map"],
    )
    @pytest.mark.parametrize("file", [INDEX, "config.json"])
    def test_json_that_is_not(self, folder, file, text, said):
        (folder / file).write_text(text)
        if file == "config.json" and text == "{}":
            said = "config."
        assert refusal(folder).startswith(f"FOLDER/{file}: {said}")

    def test_a_shard_that_is_no_file(self, folder):
        (folder / FIRST).unlink()
        said = rf"FOLDER/{FIRST}: {re.escape(prefix(0))}\w+\.weight\w*: expected it in a regular file, got another kind"
        os.mkfifo(folder / FIRST)
        assert re.fullmatch(said, refusal(folder))
        (folder / FIRST).unlink()
        (folder / FIRST).symlink_to("/dev/zero")
        assert re.fullmatch(said, refusal(folder))
        (folder / FIRST).unlink()
        (folder / FIRST).mkdir()
        assert re.fullmatch(said, refusal(folder))

    def test_an_index_and_a_single_file_that_are_none(self, folder):
        (folder / INDEX).unlink()
        os.mkfifo(folder / INDEX)
        assert refusal(folder) == f"FOLDER/{INDEX}: expected a regular file, got another kind"
        os.mkfifo(folder / "model.safetensors")
        said = "the layer: expected it in a regular file, got another kind"
        assert refusal(folder) == f"FOLDER/model.safetensors: {said}"

    def test_a_link_to_nothing(self, folder):
        (folder / FIRST).unlink()
        (folder / FIRST).symlink_to("../../blobs/0")
        assert "expected the shard that holds model.layers.0.self_attn." in refusal(folder, FileNotFoundError)

    def test_files_of_another_name(self, folder):
        want = Checkpoint(folder).load_layer(1).weights
        rename(folder, "quant_model_weight.safetensors.index.json")
        assert_same_bits("w_dq", Checkpoint(folder).load_layer(1).weights.w_dq, want.w_dq)
        (folder / "other.safetensors.index.json").write_text("{}")
        got = "the indexes other.safetensors.index.json, quant_model_weight.safetensors.index.json"
        expected = f"FOLDER: expected {INDEX} or model.safetensors, got"
        assert refusal(folder, FileNotFoundError) == f"{expected} {got}"

    def test_one_file_of_another_name(self, tmp_path):
        make_checkpoint(tmp_path, DIMS, V, n_shards=0)
        want = Checkpoint(tmp_path).load_layer(1).weights
        (tmp_path / "model.safetensors").rename(tmp_path / "model0-mp1.safetensors")
        assert_same_bits("w_dq", Checkpoint(tmp_path).load_layer(1).weights.w_dq, want.w_dq)

    @pytest.mark.parametrize("placed", [None, "model-00002-of-00002.safetensors"])
    def test_a_tensor_of_the_attention_that_the_index_places_elsewhere(self, folder, placed):
        """What reads whole shards would apply it."""
        name = f"{prefix(0)}q_a_proj.bias"
        tensors = make_checkpoint(folder, DIMS, V)
        write_checkpoint(
            folder, json.loads((folder / "config.json").read_text()), {name: np.ones(6, BF16)} | tensors, 2
        )
        index = json.loads((folder / INDEX).read_text())
        assert index["weight_map"].pop(name) == FIRST
        edit(folder / INDEX, weight_map=index["weight_map"] | ({name: placed} if placed else {}))
        if placed:
            name = f"FOLDER: {name}: expected no tensor of "
        else:
            name = f"FOLDER/{FIRST}: {name}: expected the index to place it here, got another place or none"
        assert refusal(folder).startswith(name)


def write_header(folder, change):
    """A checkpoint in one file whose header `change` has changed."""
    make_checkpoint(folder, DIMS, V, n_shards=0)
    path = folder / "model.safetensors"
    raw = path.read_bytes()
    n = struct.unpack("<Q", raw[:8])[0]
    rows = json.loads(raw[8 : 8 + n])
    change(rows)
    header = json.dumps(rows).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + raw[8 + n :])


class TestHeaders:
    @pytest.mark.parametrize(
        "row",
        [
            {"dtype": "F1024"}, {"dtype": None}, {"shape": [-1]}, {"shape": [2**62, 2**62]}, {"shape": None},
            {"data_offsets": [0, 2**60]}, {"data_offsets": [8, 0]}, {"data_offsets": [0]}, {"shape": [1e30]},
        ],
        ids=str,
    )  # fmt: skip
    def test_rows_that_do_not_fit(self, tmp_path, row):
        write_header(tmp_path, lambda rows: rows[KV_B].update(row))
        said = "FOLDER/model.safetensors: the layer: expected it in a whole safetensors file, got "
        assert refusal(tmp_path).startswith(said)

    @pytest.mark.parametrize("n_bytes", [0, 2**63, 2**64 - 1, 1 << 40])
    def test_a_length_that_does_not_fit(self, tmp_path, n_bytes):
        make_checkpoint(tmp_path, DIMS, V, n_shards=0)
        with (tmp_path / "model.safetensors").open("r+b") as file:
            file.write(struct.pack("<Q", n_bytes))
        assert "expected it in a whole safetensors file, got " in refusal(tmp_path)

    def test_nesting(self, tmp_path):
        make_checkpoint(tmp_path, DIMS, V, n_shards=0)
        header = b'{"a":' + b"[" * 100_000
        (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
        assert "expected it in a whole safetensors file, got " in refusal(tmp_path)

    def test_a_file_of_empty_tensors(self, tmp_path):
        write_checkpoint(tmp_path, asdict(DIMS) | {"v_head_dim": V}, {KV_B: np.empty((0, 4), BF16)}, 0)
        assert refusal(tmp_path) == f"FOLDER: {prefix(0)}q_a_proj.weight: expected a tensor of that name, got none"


class TestSizes:
    """What a configuration asks for is compared with the tensors that are there before any memory is taken."""

    @pytest.mark.parametrize("field", [*asdict(DIMS), "v_head_dim"])
    def test_dimensions(self, folder, field):
        edit(folder / "config.json", **{field: 2**24})
        tracemalloc.start()
        try:
            said = refusal(folder)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert re.match(r"FOLDER/model-0000\d-of-00002\.safetensors: model\.layers\.0\.self_attn\.\w+\.weight: ", said)
        assert "expected shape " in said
        assert peak < 8 << 20

    def test_blocks(self, folder):
        want = Checkpoint(folder).load_layer(0).weights
        edit(folder / "config.json", quantization_config={"weight_block_size": [2**60, 2**60]})
        assert_same_bits("w_dq", Checkpoint(folder).load_layer(0).weights.w_dq, want.w_dq)


FIELD = "FOLDER/config.json: config.quantization_config"


class TestQuantizationConfig:
    @pytest.mark.parametrize(
        ("settings", "error", "said"),
        [
            ("fp8", TypeError, ": expected an object, got str"),
            (["fp8"], TypeError, ": expected an object, got list"),
            (8, TypeError, ": expected an object, got int"),
            ({"weight_block_size": 128}, TypeError, ".weight_block_size: expected a list of two numbers, got int"),
            ({"weight_block_size": "all"}, TypeError, ".weight_block_size: expected a list of two numbers, got str"),
            ({"weight_block_size": {}}, TypeError, ".weight_block_size: expected a list of two numbers, got dict"),
            ({"weight_block_size": []}, ValueError, ".weight_block_size: expected two numbers, got []"),
            ({"weight_block_size": [1, 2, 3]}, ValueError, ".weight_block_size: expected two numbers, got [1, 2, 3]"),
            ({"weight_block_size": [1, None]}, TypeError, ".weight_block_size: expected int, got NoneType"),
            ({"weight_block_size": [True, 1]}, TypeError, ".weight_block_size: expected int, got bool"),
            ({"weight_block_size": [128.0, 1]}, TypeError, ".weight_block_size: expected int, got float"),
            ({"weight_block_size": [-1, 1]}, ValueError, ".weight_block_size: expected at least 1, got -1"),
            ({"config_groups": [1]}, TypeError, ".config_groups: expected an object, got list"),
            (
                {"config_groups": {"g": {"weights": {"block_structure": 7}}}},
                TypeError,
                ".config_groups.g.weights.block_structure: expected a list of two numbers, got int",
            ),
            (
                {"config_groups": {n: {"weights": {"block_structure": [1, n]}} for n in (1, 2)}},
                ValueError,
                ".config_groups: expected one block_structure, got [(1, 1), (1, 2)]",
            ),
        ],
    )
    def test_what_does_not_fit(self, folder, settings, error, said):
        edit(folder / "config.json", quantization_config=settings)
        assert refusal(folder, error) == FIELD + said

    @pytest.mark.parametrize(
        "settings",
        [
            {"quant_method": "fp8", "weight_block_size": [2, 3]},
            {
                "quant_method": "compressed-tensors",
                "config_groups": {"group_0": {"weights": {"block_structure": [2, 3]}}},
            },
            {
                "config_groups": {
                    "group_0": {"weights": {"block_structure": "2x3"}},
                    "group_1": {"weights": None},
                    "x": 1,
                }
            },
            {"weight_block_size": [2, 3], "quant_method": 5, "config_groups": None, "format": ["a"]},
        ],
    )
    @pytest.mark.parametrize("place", ["top", "text_config"])
    def test_where_the_size_of_a_block_is(self, tmp_path, settings, place):
        make_checkpoint(tmp_path, DIMS, V, block=(2, 3))
        want = Checkpoint(tmp_path).load_layer(0).weights
        config = json.loads((tmp_path / "config.json").read_text()) | {"quantization_config": settings}
        if place == "text_config":
            config |= {"text_config": dict(config), "quantization_config": None}
        (tmp_path / "config.json").write_text(json.dumps(config))
        assert_same_bits("w_dq", Checkpoint(tmp_path).load_layer(0).weights.w_dq, want.w_dq)
        assert_same_bits("w_uk", Checkpoint(tmp_path).load_layer(0).weights.w_uk, want.w_uk)
