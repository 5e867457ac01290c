"""While weights of a model are packed, a bar counts the layers, on a terminal and nowhere else."""

import io

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from transformers.utils import logging  # noqa: E402

from mla_numba.interop.hf.patched import patch  # noqa: E402


class Terminal(io.StringIO):
    def isatty(self):
        return True


def said_while_patching(model, monkeypatch, stream):
    monkeypatch.setattr("sys.stderr", stream)
    patched = patch(model)
    patched.refresh()
    patched.unpatch()
    return stream.getvalue()


@pytest.fixture
def model(saved):
    return saved().load()


@pytest.fixture
def bars_allowed():
    before = logging.is_progress_bar_enabled()
    logging.enable_progress_bar()
    yield
    if not before:
        logging.disable_progress_bar()


@pytest.mark.usefixtures("bars_allowed")
def test_a_bar_on_a_terminal(model, monkeypatch):
    said = said_while_patching(model, monkeypatch, Terminal())
    layers = len(model.model.layers)
    bars = said.strip().split("\n")
    assert len(bars) == 2  # patch and refresh
    assert all(f" 0/{layers} [" in bar and f" {layers}/{layers} [" in bar for bar in bars)
    assert "Packing weights" in said


@pytest.mark.usefixtures("bars_allowed")
def test_none_on_a_pipe_nor_where_transformers_shows_none(model, monkeypatch):
    assert said_while_patching(model, monkeypatch, io.StringIO()) == ""
    logging.disable_progress_bar()
    try:
        assert said_while_patching(model, monkeypatch, Terminal()) == ""
    finally:
        logging.enable_progress_bar()
