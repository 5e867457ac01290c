"""Commands on a layer with an indexer: `run --with-indexer`, and `attend`."""

import json

import numpy as np
import pytest
from helpers import published_configs
from helpers.cli import invoke, one_line_error, run_cli

from mla_numba.attention.lightning import MAX_K
from mla_numba.cli import attend_check, attend_step
from mla_numba.cli import layer as cli_layer
from mla_numba.cli.attend_check import tokens_to_check
from mla_numba.cli.commands.attend import attend as attend_command
from mla_numba.cli.model_option import parse_model
from mla_numba.kernels.sweeps.phase import ALL_PHASES
from mla_numba.rope_table import softmax_scale

DIMS = ["--dims", "64,2,32,32,16,16", "--repeats", "2", "--threads", "1"]
INDEXER = ["--indexer-heads", "4", "--indexer-head-dim", "32"]
RUN = ["run", *DIMS, "--tokens", "5", "--with-indexer", *INDEXER]
ATTEND = ["attend", *DIMS, "--context", "45", "--block-size", "8", "--k", "7", *INDEXER]


def json_of(result):
    return json.loads(result.output[result.output.index("{") : result.output.rindex("}") + 1])


@pytest.mark.parametrize(
    "options", [["--quant", "ab", "--smooth"], ["--cache-mode", "PA_NZ"], ["--phase", "prefill"]], ids=" ".join
)
def test_run_with_an_indexer_is_exact(options):
    result = invoke(*RUN, *options)
    assert result.exit_code == 0, result.output
    assert "decode of 5 tokens with an indexer" in result.output.replace("prefill", "decode")
    assert result.output.splitlines()[-1] == "exact: every bit of 12 outputs and caches equals the reference"


def test_run_with_an_indexer_counts_its_work_and_traces_its_phases(tmp_path):
    trace = tmp_path / "trace.json"
    found, alone = (
        json_of(invoke("run", *DIMS, "--tokens", "5", "--json", *options))
        for options in (["--with-indexer", *INDEXER, "--trace", str(trace)], [])
    )
    assert found["sweeps"]["total"]["bytes"] > alone["sweeps"]["total"]["bytes"]
    assert list(found["last_call_busy_s"]) == list(ALL_PHASES)
    events = json.loads(trace.read_text())["traceEvents"]
    assert {"index_down", "index_heads"} <= {event.get("cat") for event in events}
    rows = [line.split()[:1] for line in invoke(*RUN, "--trace", str(trace)).output.splitlines()]
    assert ["index_key"] in rows


def spoilt(reference, field):
    def wrong(*args, **keywords):
        output = reference(*args, **keywords)
        array = output if field is None else getattr(output, field)
        array.reshape(-1)[:1] = np.array([1], array.dtype)
        return output

    return wrong


@pytest.mark.parametrize("field", ["query", "query_scale", "weights", "k_cache", "k_scale_cache"])
def test_a_bit_of_the_indexer_that_differs_fails(monkeypatch, field):
    name = "indexer_prolog_reference"
    monkeypatch.setattr(cli_layer, name, spoilt(getattr(cli_layer, name), field))
    result = invoke(*RUN)
    assert result.exit_code == 1
    assert f"\nindexer.{field}: 1 of " in result.output
    assert "exact" not in result.output


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--with-indexer", "--quant", "a"], "--with-indexer: expected with --quant b or ab, got --quant a"),
        (["--with-indexer", "--numerics", "cann"], "expected with --numerics pypto, got --numerics cann"),
        (["--with-indexer", "--mpi"], "--with-indexer: expected without --mpi"),
        (["--indexer-heads", "4"], "--indexer-heads: expected together with --with-indexer, got 4 alone"),
        (["--with-indexer", "--indexer-head-dim", "24"], "'--indexer-head-dim': head_dim: expected a power of two"),
        (["--with-indexer", "--indexer-head-dim", "8"], "expected at most the 8 columns of a head, got 16"),
        (["--with-indexer", "--cache-mode", "PA_NZ", "--indexer-head-dim", "16"], "'--cache-mode': k_cache"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_options_of_run_are_one_line(options, said):
    assert said in one_line_error("run", *DIMS, *options)


CONFIG = {
    "model_type": "deepseek_v32", "hidden_size": 64, "num_attention_heads": 2, "q_lora_rank": 32, "kv_lora_rank": 32,
    "qk_nope_head_dim": 16, "qk_rope_head_dim": 16, "v_head_dim": 16, "rope_theta": 10000,
    "index_n_heads": 4, "index_head_dim": 32, "index_topk": 7,
    "rope_scaling": {"type": "yarn", "factor": 40, "original_max_position_embeddings": 64, "mscale": 1,
                     "mscale_all_dim": 1},
}  # fmt: skip
YARN = 32**-0.5 * (1 + 0.1 * np.log(40)) ** 2


@pytest.fixture
def model(tmp_path):
    """The folder of a model with an indexer."""
    return written(tmp_path)


def written(folder, **changes):
    config = {name: value for name, value in (CONFIG | changes).items() if value is not None}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def of_model(command, model, *options):
    return invoke(command, "--dims", str(model), "--repeats", "1", "--threads", "1", "--json", *options)


def test_a_configuration_says_what_indexer_and_scale_there_are(model):
    step = json_of(of_model("attend", model, "--context", "45", "--block-size", "8"))
    assert step["exact"]
    assert step["indexer_dims"] == {
        "hidden_size": 64, "q_lora_rank": 32, "n_heads": 4, "head_dim": 32, "qk_rope_head_dim": 16,
    }  # fmt: skip
    assert step["options"]["k"] == 7
    assert step["softmax_scale"] == pytest.approx(YARN, rel=1e-12)
    config = str(model / "config.json")
    found = json_of(
        of_model("attend", config, "--context", "9", "--k", "3", "--indexer-heads", "2", "--softmax-scale", "-0.25")
    )
    assert (found["indexer_dims"]["n_heads"], found["indexer_dims"]["head_dim"]) == (2, 32)
    assert (found["options"]["k"], found["softmax_scale"], found["exact"]) == (3, -0.25, True)
    # The keys of an indexer of four heads of 32: x times wk and w_proj, w_qb.
    with_indexer, alone = (json_of(of_model("run", model, "--tokens", "2", *more)) for more in (["--with-indexer"], []))
    assert (with_indexer["indexer_dims"], alone["indexer_dims"]) == (step["indexer_dims"], None)
    more = with_indexer["sweeps"]["total"]["bytes"] - alone["sweeps"]["total"]["bytes"]
    assert 64 * (32 + 4) * 2 + 32 * 4 * 32 <= more < 3 * (64 * (32 + 4) * 2 + 32 * 4 * 32)


def test_how_rope_columns_come_is_read_too(model):
    assert parse_model(str(written(model, model_type="glm_moe_dsa"))).indexer() == (4, 32, "interleaved")
    assert parse_model(str(written(model))).indexer() == (4, 32, "half")


def test_scales_without_a_configuration():
    given = {param.name: None for param in attend_command.params} | {"small": False, "threads": 1}

    def scale_of(**options):
        return attend_step.AttendOptions(**given | options).scale_of_scores

    published = softmax_scale(published_configs.DEEPSEEK)
    assert scale_of() == pytest.approx(published, rel=1e-12) == pytest.approx(0.1352337, rel=1e-6)
    assert scale_of(small=True) == pytest.approx(48**-0.5, rel=1e-12)
    assert scale_of(model=parse_model("64,2,32,32,16,16")) == pytest.approx(32**-0.5, rel=1e-12)


@pytest.mark.parametrize("command", ["attend", "run"])
def test_a_model_without_an_indexer_is_refused_by_name(model, command):
    more = ["--with-indexer"] if command == "run" else []
    said = one_line_error(command, "--dims", str(written(model, index_n_heads=None)), *more)
    assert "'--dims': config.index_n_heads: expected an int (a model without it has no indexer), got none" in said
    assert said.endswith("; --indexer-heads and --indexer-head-dim make one of any size")
    if command == "run":
        assert of_model("run", model, "--tokens", "1").exit_code == 0  # which asks for none
        assert of_model("run", model, "--tokens", "1", "--with-indexer", *INDEXER).exit_code == 0


def test_wrong_settings_of_a_configuration_are_refused_before_any_work(model):
    for changes, said in (
        ({"index_topk": 5000}, "'--dims': config.index_topk: expected an int in 1..4096, got 5000"),
        ({"index_head_dim": 1025}, "'--dims': config.index_head_dim: expected at most 1024, got 1025"),
        ({"rope_scaling": {"type": "yarn"}}, "'--dims': config.max_position_embeddings: expected a number, got none"),
    ):
        assert said in one_line_error("attend", "--dims", str(written(model, **changes)))
    (model / "config.json").unlink()
    assert "config.json" in one_line_error("attend", "--dims", str(model))
    for scale, said in (("nan", "expected a finite number, got nan"), ("1e39", "finite in float32, got 1e+39")):
        assert said in one_line_error("attend", "--small", "--softmax-scale", scale)


def test_attend_shows_each_stage_and_that_it_is_exact():
    status, out, err = run_cli(*ATTEND, "--sequences", "2", "--tokens", "2")
    assert status == 0, err
    lines = [line for line in out.splitlines() if not line.startswith("busy machine, ")]
    assert lines[1].startswith(
        "2 x 2 tokens, 45 keys a sequence, 7 of them for each token, quant b, indexer 4 x 32, "
        "softmax scale 0.176777, 1 "
    )
    rows = [line.split()[0] for line in lines if line.startswith("  ") and line.split()]
    assert [row for row in rows if row in ("prologs", "lightning", "sparse", "step")] == [
        "prologs", "lightning", "sparse", "step",
    ]  # fmt: skip
    assert lines[-1] == (
        "exact: every bit of tokens 0 and 3 of 4, and of their rows in the caches, equals the reference "
        "(--check all compares every token)"
    )
    for step in ("filling caches", "first step", "timing 2 steps", "comparing with the reference"):
        assert step in err
    assert "Warning" not in err


def test_attend_json_has_work_memory_and_what_was_compared():
    result = invoke(*ATTEND, "--json", "--check", "all", "--quant", "ab", "--cache-mode", "PA_NZ")
    assert result.exit_code == 0, result.output
    found = json_of(result)
    assert (found["exact"], found["checked_tokens"], found["mismatches"]) == (True, [0], [])
    assert (found["options"]["context"], found["options"]["k"]) == (45, 7)
    stages = found["stages"]
    assert list(stages) == ["prologs", "lightning index", "sparse attention", "step"]
    # A key of the indexer is 32 codes and a scale, one of the prolog's 32 codes, 4 scales and 16 rope elements.
    assert stages["lightning index"]["bytes"] == 45 * (32 + 2) + 4 * (32 + 4) + 4 * 7
    assert stages["lightning index"]["int8_ops"] == 2 * 45 * 4 * 32
    assert stages["sparse attention"]["bytes"] == 7 * (32 + 16 + 32) + 2 * (2 * 32 + 16) * 2 + 4 * 7
    assert stages["sparse attention"]["flops"] == 2 * 7 * 2 * (2 * 32 + 16)
    for name in ("bytes", "flops", "int8_ops"):
        assert stages["step"][name] == sum(stages[stage][name] for stage in list(stages)[:3])
    for stage in stages.values():
        assert len(stage["times_s"]) == 2
        assert stage["memory_bytes"] > 0
        assert stage["least_ms"] > 0


def test_attend_without_a_check_says_so():
    result = invoke(*ATTEND, "--check", "none")
    assert result.output.splitlines()[-1] == "not checked against the reference"
    assert json_of(invoke(*ATTEND, "--check", "none", "--json"))["exact"] is None


@pytest.mark.parametrize(
    ("module", "name", "said"),
    [
        (attend_check, "lightning_index_reference", "\nindex of token 0: 1 of 7 elements differ"),
        (attend_check, "sparse_attention_reference", "\nlatent of token 0: 1 of 64 elements differ"),
    ],
)
def test_a_wrong_bit_of_a_stage_fails(monkeypatch, module, name, said):
    monkeypatch.setattr(module, name, spoilt(getattr(module, name), None))
    result = invoke(*ATTEND)
    assert result.exit_code == 1
    assert said in result.output
    assert "exact" not in result.output


@pytest.mark.parametrize("which", ["some", "all"])
def test_a_wrong_row_of_a_cache_fails(monkeypatch, which):
    def attend(step, out, index):
        latent = ATTENDED(step, out, index)
        step.caches.keys.k.view("u1")[...] ^= 1
        return latent

    monkeypatch.setattr(attend_step.Step, "attend", attend)
    result = invoke(*ATTEND, "--tokens", "3", "--check", which)
    assert result.exit_code == 1
    n_differ = {"some": 2 * 32, "all": None}[which]  # of some tokens only their own rows are compared
    assert f"\nindexer.k_cache: {'' if n_differ is None else n_differ}" in result.output


ATTENDED = attend_step.Step.attend


def test_which_tokens_are_compared():
    assert [tokens_to_check(t, "some") for t in (1, 2, 9)] == [[0], [0, 1], [0, 8]]
    assert tokens_to_check(3, "all") == [0, 1, 2]
    assert tokens_to_check(3, "none") == []


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--tokens", "46"], "--tokens: expected at most the 45 of --context, got 46"),
        (["--quant", "none"], "attend: expected with --quant b or ab, got --quant none"),
        (["--small"], "--small: expected without --dims, got both"),
        (["--k", str(MAX_K + 1)], f"{MAX_K + 1} is not in the range 1<=x<={MAX_K}"),
        (["--context", "0"], "0 is not in the range 1<=x<=16777216"),
        (["--indexer-head-dim", "24"], "'--indexer-head-dim': head_dim: expected a power of two"),
        (["--check", "few"], "'few' is not one of 'some', 'all', 'none'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_options_of_attend_are_one_line(options, said):
    assert said in one_line_error(*ATTEND, *options)


def test_the_most_keys_are_what_the_index_takes():
    k = next(option for option in attend_command.params if option.name == "k")
    assert k.type.max == MAX_K
