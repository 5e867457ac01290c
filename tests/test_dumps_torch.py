"""Dumps as `torch.save` writes them."""

import re
import shutil
import sys
import zipfile

import pytest
from helpers import MODES
from helpers.operator_folders import CASES, OPERATORS

from mla_numba import MlaDims
from mla_numba.base.extras import how_to_install
from mla_numba.dumps import DumpSettings, check_dump, dump_settings, read_dump, write_dump

torch = pytest.importorskip("torch")
DIMS = MlaDims(70, 3, 50, 64, 18, 32)
T = 5
SMALL = DumpSettings(dims=DIMS, block_size=4)


@pytest.fixture
def folder(tmp_path):
    write_dump(tmp_path / "dump", T, settings=SMALL, file_format="pt")
    return tmp_path / "dump"


def assert_exact(folder):
    report = check_dump(read_dump(folder), exact=True)
    assert len(report) == 7
    assert all(found.passed for found in report)


@pytest.mark.parametrize("mode", MODES)
def test_what_is_written_is_read_and_exact(tmp_path, mode):
    quant, _, smooth = mode.partition(" ")
    write_dump(tmp_path / "a", T, quant, settings=SMALL, smooth=bool(smooth), file_format="pt")
    write_dump(tmp_path / "b", T, quant, settings=SMALL, smooth=bool(smooth))
    tensor = torch.load(tmp_path / "a" / "token_x.pt", weights_only=True)
    assert (tensor.dtype, tuple(tensor.shape)) == (torch.bfloat16, (T, DIMS.hidden_size))
    a, b = read_dump(tmp_path / "a"), read_dump(tmp_path / "b")
    assert a.weights.w_uq_qr.tobytes() == b.weights.w_uq_qr.tobytes()
    assert all(found.exact for found in check_dump(a, exact=True))


@pytest.mark.parametrize(
    "change",
    [
        lambda x: x.float(),
        lambda x: x.view(torch.int16),
        lambda x: x.t().contiguous().t(),
        lambda x: torch.nn.Parameter(x),
        lambda x: x.reshape(1, *x.shape),
        lambda x: torch.cat([x, x])[: len(x)],
    ],
)
def test_forms_of_a_tensor(folder, change):
    path = folder / "token_x.pt"
    torch.save(change(torch.load(path, weights_only=True)), path)
    assert_exact(folder)


def test_the_form_before_archives(folder):
    path = folder / "w_uk.pt"
    torch.save(torch.load(path, weights_only=True), path, _use_new_zipfile_serialization=False)
    assert_exact(folder)


@pytest.mark.parametrize("collect", [dict, lambda pairs: [tensor for _, tensor in pairs]])
def test_several_tensors_in_a_file(tmp_path, collect):
    style = "reference" if collect is dict else "numbers"
    write_dump(tmp_path / "dump", T, settings=SMALL, file_format="pt", style=style)
    folder = tmp_path / "dump"

    def key(path):
        name = path.stem.removesuffix("_golden").removeprefix("golden_").removeprefix("input_")
        return (int(name), name) if name.isdigit() else (0, name)

    for kind, names in (("inputs", "[!.]*"), ("golden", "*golden*")):
        paths = sorted((p for p in folder.glob(names + ".pt") if ("golden" in p.stem) == (kind == "golden")), key=key)
        tensors = [(key(path)[1], torch.load(path, weights_only=True)) for path in paths]
        for path in paths:
            path.unlink()
        torch.save(collect(tensors), folder / f"{kind}.pt")
    assert {path.name for path in folder.glob("*.pt")} == {"inputs.pt", "golden.pt"}
    report = check_dump(read_dump(folder), exact=True)
    assert [found.file for found in report][:1] == ["golden.pt['q_norm']" if collect is dict else "golden.pt['0']"]
    assert len(report) == 7
    assert all(found.passed for found in report)


@pytest.mark.parametrize("case", OPERATORS)
def test_keys_of_a_file_tell_the_operator(tmp_path, case):
    folder = CASES[case].write(tmp_path / "dump", file_format="pt")
    for kind, is_golden in (("inputs", False), ("golden", True)):
        paths = [path for path in folder.glob("*.pt") if ("golden" in path.stem) == is_golden]
        tensors = {path.stem.removesuffix("_golden"): torch.load(path, weights_only=True) for path in paths}
        for path in paths:
            path.unlink()
        torch.save(tensors, folder / f"{kind}.pt")
    assert all(found.passed for found in check_dump(read_dump(folder), exact=True))
    (folder / "dims.json").unlink()
    assert dump_settings(folder).operator == CASES[case].settings.operator


def test_what_else_a_dict_holds(folder):
    names = {"token_x", "cos"}
    tensors = {name: torch.load(folder / f"{name}.pt", weights_only=True) for name in names}
    for name in names:
        (folder / f"{name}.pt").unlink()
    torch.save(tensors | {"step": 3, "seen": None, "loss": torch.zeros(3)}, folder / "dump.pt")
    dump = read_dump(folder)
    assert dump.unread == ("dump.pt['loss']",)
    assert_exact(folder)


def test_other_files_are_not_opened(folder):
    (folder / "model.pt").write_bytes(b"no tensor at all")
    assert read_dump(folder).unread == ("model.pt",)


class Planted:
    def __reduce__(self):
        return print, ("code of a stranger",)


@pytest.mark.parametrize(
    ("content", "error", "text"),
    [
        (
            Planted(),
            ValueError,
            "expected a file that torch.load takes with weights_only, got Weights only",
        ),
        (3, ValueError, "token_x.pt: expected a tensor, or a dict or list of tensors, got int"),
        ({}, ValueError, "token_x.pt: expected a tensor, or a dict or list of tensors, got one without any"),
        (torch.zeros(1).expand(2**40), ValueError, "token_x.pt: expected a tensor with each element in the file"),
        (torch.zeros(T, 70).to_sparse(), TypeError, "token_x.pt: expected a plain tensor, got a sparse_coo one on cpu"),
        (
            torch.zeros(T, 70, device="meta"),
            TypeError,
            "expected a plain tensor, got a strided one on meta",
        ),
        (torch.zeros(T, 70).half(), TypeError, "token_x (token_x.pt): expected bfloat16"),
        (torch.zeros(T, 70, dtype=torch.complex64), TypeError, "token_x (token_x.pt): expected bfloat16"),
        (torch.zeros(T, 70).to(torch.float8_e5m2), TypeError, "token_x.pt: expected a dtype that NumPy has"),
        (torch.zeros(T, 69).bfloat16(), ValueError, "token_x (token_x.pt): expected shape (any, 70), got (5, 69)"),
    ],
)
def test_what_is_refused(folder, content, error, text, capsys):
    torch.save(content, folder / "token_x.pt")
    with pytest.raises(error, match=re.escape(text)):
        read_dump(folder)
    assert "stranger" not in capsys.readouterr().out


@pytest.mark.parametrize("n", [0, 1, 100, -100])
def test_a_file_that_is_cut(folder, n):
    path = folder / "token_x.pt"
    path.write_bytes(path.read_bytes()[:n])
    with pytest.raises(ValueError, match=r"token_x\.pt: expected a file that torch\.load takes with weights_only"):
        read_dump(folder)


def test_a_compressed_archive_is_refused_before_it_grows(folder, tmp_path):
    path, packed = folder / "token_x.pt", tmp_path / "packed.pt"
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as new:
        for entry in old.infolist():
            new.writestr(entry.filename, old.read(entry))
    shutil.copy(packed, path)
    with pytest.raises(ValueError, match=r"got a compressed archive"):
        read_dump(folder)


def test_without_torch(folder, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    how = re.escape(how_to_install("torch", "torch"))
    with pytest.raises(ImportError, match=rf"\.pt: expected the package torch, got none: {how}"):
        read_dump(folder)
    with pytest.raises(ImportError, match="file_format: expected the package torch"):
        write_dump(tmp_path / "new", T, settings=SMALL, file_format="pt")
    assert not (tmp_path / "new").exists()
