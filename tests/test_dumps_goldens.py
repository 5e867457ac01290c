"""Golden outputs that `write_dump` wrote pass for nobody's work."""

import json
import shutil

import numpy as np
import pytest

from mla_numba import MlaDims
from mla_numba.dumps import DumpSettings, check_dump, read_dump, write_dump

DIMS = MlaDims(64, 2, 32, 64, 16, 32)


@pytest.fixture
def folder(tmp_path):
    write_dump(tmp_path / "dump", 3, settings=DumpSettings(dims=DIMS, block_size=4))
    return tmp_path / "dump"


def flip(path):
    array = np.load(path)
    array.view(np.uint8).flat[0] ^= 1
    np.save(path, array)


def test_goldens_alone_are_known_as_such(folder):
    dump = read_dump(folder)
    assert dump.only_goldens
    assert len(dump.outputs) == 7
    assert all(found.exact for found in check_dump(dump))


def test_an_operator_s_outputs_come_before_goldens(folder):
    shutil.copy(folder / "q_norm_golden.npy", folder / "q_norm_out.npy")  # the same bits: an operator that is exact
    dump = read_dump(folder)
    assert not dump.only_goldens
    assert [output.file for output in dump.outputs] == ["q_norm_out.npy"]
    assert len(dump.goldens_left_out) == 7
    goldens = read_dump(folder, goldens=True)
    assert goldens.only_goldens
    assert [output.file for output in goldens.outputs] == sorted(
        dump.goldens_left_out, key=list(dump.goldens_left_out).index
    )


def test_a_golden_that_was_replaced_is_an_operator_s_output(folder):
    flip(folder / "query_rope_golden.npy")
    dump = read_dump(folder)
    assert not dump.only_goldens
    assert [output.name for output in dump.outputs] == ["query_rope_out"]
    assert len(dump.goldens_left_out) == 6
    assert dump.missing[0] == "q_norm_out"
    assert not check_dump(dump, exact=True)[0].passed


def test_goldens_of_another_oracle_are_checked(folder):
    (folder / "golden.json").unlink()
    dump = read_dump(folder)
    assert not dump.only_goldens
    assert len(dump.outputs) == 7


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("{", "expected JSON"),
        ("[]", "expected a JSON object, got list"),
        ("[" * 100_000, "expected a JSON object, got one that is nested too deeply"),
        ("{}", "expected sha256 to hold a digest for each file"),
        ({"sha256": None}, "expected sha256 to hold a digest for each file"),
        ({"sha256": {"q_norm_golden.npy": 10**30}}, "expected sha256 to hold a digest for each file"),
    ],
)
def test_a_mark_of_another_form_is_refused(folder, content, text):
    (folder / "golden.json").write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(ValueError, match=rf"golden\.json: {text}"):
        read_dump(folder)


def test_a_mark_names_files_of_its_folder_only(folder):
    """Paths in a mark are compared with those that are found; none is opened because it stands there."""
    (folder / "golden.json").write_text(json.dumps({"sha256": {"../secret": "0", "/dev/zero": "0"}}))
    assert len(read_dump(folder).outputs) == 7
