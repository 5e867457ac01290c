"""The bench that measures how far a patched model is from an unpatched one."""

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

import hf_agreement  # noqa: E402
import hf_speed  # noqa: E402
from click.testing import CliRunner  # noqa: E402
from helpers.hf_models import INDEXER, SMALL, make_prompt  # noqa: E402
from hf_agreement import agreement, check_rows, main  # noqa: E402

from mla_numba import Checkpoint  # noqa: E402
from mla_numba.interop.hf.patched import patch  # noqa: E402


def test_agreement_by_hand():
    truth = torch.tensor([[[3.0, -1.0], [-1.0, 1.0], [2.0, 0.0]]])
    logits = truth + torch.tensor([[[0.5, 0.5], [-0.5, -2.5], [0.0, 0.0]]])
    run, plain_run = torch.tensor([[4, 5, 6], [7, 8, 9]]), torch.tensor([[4, 0, 6], [7, 8, 9]])
    got = agreement("none", logits, truth + 0.25, truth, run, plain_run)
    assert got.name == "none"
    assert got.median == pytest.approx(0.5 / truth.std())
    assert got.from_unpatched == pytest.approx(0.25 / truth.std())
    assert got.as_truth == got.as_unpatched == pytest.approx(2 / 3)
    assert got.same_run == 2.0


@pytest.mark.parametrize("full_width", [False, True])
def test_it_prints_a_table_of_all_modes(full_width, monkeypatch):
    monkeypatch.setattr(hf_agreement, "SIZES", SMALL)
    monkeypatch.setattr(hf_agreement, "FULL_WIDTH", SMALL | INDEXER | {"index_topk": 4})
    arguments = ["--prompts", "2", "--tokens", "8", "--new", "3", "--checked", "3", "--habit", "1"]
    arguments += ["--full-width"] if full_width else []
    done = CliRunner().invoke(main, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in done.output.splitlines() if "%" in line]
    assert [line[0] for line in lines] == ["unpatched", "none", "a", "b", "ab"]
    assert [lines[0][3], *lines[0][5:]] == ["0.0000", "100.0 %", "3.0"]
    assert 0 < float(lines[1][3]) < 0.2


@pytest.mark.parametrize("quant", ["none", "b"])
def test_it_finds_a_row_that_is_not_the_references(saved, quant):
    model = saved("dense").load()
    checkpoint = Checkpoint(saved("dense").folder)
    patched = patch(model, quant=quant)
    check_rows(patched, checkpoint, make_prompt(1, 3), "pypto")
    model.model.layers[1].self_attn.forward = patched._forwards[0]
    with pytest.raises(Exception, match="layer 1, kv_cache"):
        check_rows(patched, checkpoint, make_prompt(1, 3), "pypto")


@pytest.mark.parametrize(("model", "quant"), [("v3", "b"), ("v32", "none"), ("v32", "b")])
def test_speed_compares_logits_first_and_prints_ratios(model, quant, monkeypatch):
    arguments = ["--model", model, "--quant", quant, "--tokens", "6", "--after", "5", "--rounds", "2"]
    arguments += ["--hidden", "64", "--heads", "2"]
    done = CliRunner().invoke(hf_speed.main, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    lines = done.output.splitlines()
    assert [line.split(":")[0] for line in lines] == ["6 tokens", "1 more after 5"]
    assert all(float(line.rpartition(" ")[2]) > 0 for line in lines)
    monkeypatch.setitem(hf_speed.MOST_ERROR, model, 0.0)
    done = CliRunner().invoke(hf_speed.main, arguments)
    assert done.exit_code == 1
    assert "logits: expected a relative difference" in done.output


@pytest.mark.parametrize(("kind", "quant"), [("v3", "b"), ("v32", "none")])
def test_what_does_not_fit_is_left_out_and_said(kind, quant, monkeypatch):
    """The unpatched model runs for an eighth and a quarter of the tokens only."""
    monkeypatch.setattr(hf_speed, "SURELY_FITS", 8)
    monkeypatch.setattr(hf_speed, "available_mb", lambda: 70_000.0)
    peaks = iter([1500.0, 5000.0, 80.0, 3015.0, 6030.0, 0.0, 0.0])
    monkeypatch.setattr(hf_speed, "peak_mb", lambda call: call() and next(peaks))
    lengths = []
    plain = hf_speed.forward
    monkeypatch.setattr(
        hf_speed, "forward", lambda m, tokens, cache=None: lengths.append(tokens.shape[1]) or plain(m, tokens, cache)
    )
    arguments = ["--model", kind, "--quant", quant, "--tokens", "16", "--after", "16", "--rounds", "1"]
    done = CliRunner().invoke(hf_speed.main, [*arguments, "--hidden", "64", "--heads", "2"], catch_exceptions=False)
    first, second = done.output.splitlines()
    assert first.startswith("16 tokens: unpatched would need 68.0 GB, of which 70.0 are available, patched ")
    assert first.endswith(" ms, peak 80 MB")
    assert " ratio " in second
    assert lengths[:4] == [2, 4, 16, 16]


def test_a_peak_of_shorter_calls_tells_that_of_a_long_one():
    made = []
    peaks = {2: 6.0, 4: 20.0, 16: None}  # n^2 + n
    call_of = lambda n: made.append(n) or n  # noqa: E731
    with pytest.MonkeyPatch.context() as changes:
        changes.setattr(hf_speed, "peak_mb", peaks.__getitem__)
        assert hf_speed.expected_peak_mb(call_of, 16) == 16**2 + 16
        changes.setitem(peaks, 4, 10.0)  # less than twice as much: nothing grows with the square
        assert hf_speed.expected_peak_mb(call_of, 16) == 8 * 6.0
        changes.setitem(peaks, 2, None)
        assert hf_speed.expected_peak_mb(call_of, 16) is None
    assert made == [2, 4] * 3


def test_caches_are_filled_with_the_same_rows(saved):
    model = saved("v32 sparse").load()
    patched = patch(model, quant="b", block_size=4)
    plain, ours = hf_speed.filled_caches(model.config, patched, 9)
    pool = ours.pool
    rows = pool.cache(0).gather(pool.slots(0, 9)[0])
    assert torch.equal(plain.layers[0].keys[0, 0], torch.from_numpy(rows.kv).bfloat16())
    assert ours.get_seq_length() == plain.get_seq_length() == 9
    assert rows.kv.std() > 0.1


def test_a_peak_is_what_a_call_adds():
    peak = hf_speed.peak_mb(lambda: torch.ones(30_000_000).sum())
    assert peak is None or 100 <= peak <= 400
