"""Folders of the operators beside the prolog: what is written is read, and wrong outputs are found and named."""

import json
import re
from dataclasses import fields, replace

import numpy as np
import pytest
from helpers.operator_folders import CASES, DIMS, INDEXER, OPERATORS, settings

import mla_numba as mla
from mla_numba.dumps import DumpSettings, check_dump, dump_settings, read_dump, write_dump
from mla_numba.layouts import pa_bsnd_to_pa_nz
from mla_numba.modes import DUMP_OPERATORS, DUMP_STYLES
from mla_numba.oracle.bits import check_indexer_output, check_output, compare_bits

EACH = pytest.mark.parametrize("case", OPERATORS)


def outputs_of(folder):
    return sorted(path.stem.removesuffix("_golden") for path in folder.glob("*_golden.npy"))


def change(folder, name, edit):
    """Saves an output as `edit` makes it of the golden, as an operator would that is wrong there."""
    array = np.load(folder / f"{name}_golden.npy")
    edit(array.view({1: np.uint8, 2: np.uint16, 4: np.uint32}[array.itemsize]))
    np.save(folder / f"{name}_out.npy", array)
    (found,) = check_dump(read_dump(folder))
    return found


@pytest.mark.parametrize("file_format", ["npy", "bin"])
@pytest.mark.parametrize("case", CASES)
def test_what_is_written_is_read_and_exact(tmp_path, case, file_format):
    style = DUMP_STYLES[(list(CASES).index(case) + (file_format == "bin")) % 3]
    folder = CASES[case].write(tmp_path / "dump", file_format=file_format, style=style)
    dump = read_dump(folder)
    assert dump.call.operator == CASES[case].settings.operator
    report = check_dump(dump, exact=True)
    assert [found.name for found in report] == [a.name for a in dump.call.arguments().all_outputs]
    assert all(found.exact and found.passed for found in report)
    assert (dump.missing, dump.unread, dump.goldens_left_out, dump.only_goldens) == ((), (), (), True)


@pytest.mark.parametrize(
    ("case", "other"),
    [
        ("indexer", {"epsilon_k": 1e-6}),
        ("indexer", {"rope": "interleaved"}),
        ("both", {"epsilon_k": 0.1}),
        ("both", {"epsilon_cq": 1e-5}),
        ("both nz", {"rope": "half"}),
        ("attention", {"softmax_scale": 0.5}),
        ("flash", {"flash_tile": 4}),
        ("flash", {"flash_tile": None}),
        ("records", {"record_order": "flashmla"}),
    ],
)
def test_each_setting_counts(tmp_path, case, other):
    folder = CASES[case].write(tmp_path / "dump")
    dump = read_dump(folder, replace(dump_settings(folder), **other))
    assert not all(found.exact for found in check_dump(dump))


@pytest.mark.parametrize("file_format", ["npy", "bin"])
@pytest.mark.parametrize("style", DUMP_STYLES)
@EACH
def test_without_dims_json_files_tell_the_operator(tmp_path, case, style, file_format):
    folder = CASES[case].write(tmp_path / "dump", style=style, file_format=file_format)
    (folder / "dims.json").unlink()
    assert dump_settings(folder).operator == CASES[case].settings.operator
    given = CASES[case].settings if file_format == "bin" else DumpSettings(block_size=4)  # of which `.npy` show more
    named = {field.name: getattr(given, field.name) for field in fields(given)}
    known = {"softmax_scale": 50**-0.5, "epsilon_k": CASES[case].settings.epsilon_k}
    known |= {name: getattr(CASES[case].settings, name) for name in ("epsilon_cq", "epsilon_ckv")}
    if case == "records":
        known["softmax_scale"] = 82**-0.5
    named |= known | {"operator": None}
    assert all(found.exact for found in check_dump(read_dump(folder, dump_settings(folder, **named))))


def test_a_prolog_is_still_guessed_where_much_is_missing(tmp_path):
    write_dump(tmp_path / "dump", 3, settings=DumpSettings(dims=DIMS, block_size=4))
    (tmp_path / "dump" / "dims.json").unlink()
    (tmp_path / "dump" / "token_x.npy").unlink()
    assert dump_settings(tmp_path / "dump").operator == dump_settings(tmp_path).operator == "mla_prolog_quant"
    assert dump_settings(tmp_path, operator="lightning_indexer_quant").operator == "lightning_indexer_quant"


def test_a_config_json_tells_sizes_of_the_indexer_and_the_scale(tmp_path):
    config = {"model_type": "glm_moe_dsa", "hidden_size": 70, "num_attention_heads": 3, "q_lora_rank": 50}
    config |= {"kv_lora_rank": 64, "qk_nope_head_dim": 18, "qk_rope_head_dim": 32, "rope_theta": 1e4}
    config |= {"index_n_heads": 3, "index_head_dim": 32, "index_topk": 2048, "rms_norm_eps": 1e-5}
    for case in ("indexer nz", "attention"):
        folder = CASES[case].write(tmp_path / case, file_format="bin", style="numbers")
        (folder / "dims.json").write_text(json.dumps(config))
        (folder / "dims.json").rename(folder / "config.json")
        of_folder = {"cache_mode": CASES[case].settings.cache_mode, "nz": case == "indexer nz", "block_size": 4}
        found = dump_settings(folder, **of_folder)
        assert found.rope == "interleaved"  # as in the family
        assert (found.indexer_heads, found.indexer_head_dim) == (3, 32)
        assert all(agreement.exact for agreement in check_dump(read_dump(folder, found)))


@EACH
def test_a_wrong_value_in_each_output_is_found_and_named(tmp_path, case):
    folder = CASES[case].write(tmp_path / "dump")
    for name in outputs_of(folder):

        def flip_last(bits):
            bits[tuple(n - 1 for n in bits.shape)] ^= 1 << (8 * bits.itemsize - 2)  # of an exponent, or 64 of a code

        found = change(folder, name, flip_last)
        assert found.name.removesuffix("_out") == name
        assert (found.file, found.exact, found.mismatch.n_differ) == (f"{name}_out.npy", False, 1)
        (again,) = check_dump(read_dump(folder), exact=True)
        assert (again.name, again.passed) == (found.name, False)

        def flip_all(bits):
            bits ^= 1 << (8 * bits.itemsize - 2)

        assert not change(folder, name, flip_all).passed  # more than any share
        (folder / f"{name}_out.npy").unlink()


@EACH
def test_a_nan_fails_whatever_the_tolerance(tmp_path, case):
    folder = CASES[case].write(tmp_path / "dump")
    n_floats = 0
    for name in outputs_of(folder):
        array = np.load(folder / f"{name}_golden.npy")
        if array.dtype.kind == "i":
            continue
        n_floats += 1

        def edit(bits):
            bits[(0,) * bits.ndim] = 0x7FFFFFFF if bits.itemsize == 4 else 0x7FFF

        found = change(folder, name, edit)
        assert (found.n_nan, found.passed) == (1, False), name
        (folder / f"{name}_out.npy").unlink()
    assert n_floats == {"indexer": 3, "both": 8, "index": 0}.get(case, 1)


@pytest.mark.parametrize("case", ["indexer", "both"])
def test_a_changed_byte_in_a_row_that_no_token_names(tmp_path, case):
    folder = CASES[case].write(tmp_path / "dump")
    dump = read_dump(folder)
    index = dump.cache_index if case == "indexer" else dump.prolog.cache_index
    slot = min(set(range(12)) - set(index.tolist()))
    caches = {"indexer": ("k_int8", "k_scale")}.get(
        case, ("mla_kv_cache", "mla_kr_cache", "mla_k_scale_cache", "ip_k_int8", "ip_k_scale")
    )
    for name in caches:

        def edit(bits):
            bits[slot // 4, slot % 4, 0, 0] ^= 1

        found = change(folder, name, edit)
        assert (found.n_beyond, found.n_changed, found.first_changed, found.passed) == (0, 1, slot, False), name
        (folder / f"{name}_out.npy").unlink()


def test_places_in_nz_caches_of_the_indexer_are_blocks_and_slots(tmp_path):
    case = CASES["indexer nz"]
    folder = case._replace(settings=replace(case.settings, indexer_head_dim=64)).write(tmp_path / "dump")
    plain = np.zeros((3, 4, 1, 64), np.uint8)
    plain[1, 2, 0, 40] = 1

    def edit(bits):
        bits ^= pa_bsnd_to_pa_nz(plain.view(np.int8)).view(np.uint8)

    found = change(folder, "k_int8", edit)
    assert (found.mismatch.n_differ, found.mismatch.first) == (1, (1, 2, 0, 40))


def test_one_operator_of_both_prologs_may_be_further_off(tmp_path):
    """Codes by 2 in place of 1; a share of the scales of caches."""
    alone, both = (CASES[name].write(tmp_path / name) for name in ("indexer", "both"))

    def by_two(bits):
        codes = bits.view(np.int8)
        codes[0, 0, 0] += 2 if codes[0, 0, 0] < 100 else -2

    assert not change(alone, "q_int8", by_two).passed
    assert change(both, "ip_q_int8", by_two).passed


def test_lists_pass_with_keys_that_score_as_much(tmp_path):
    folder = CASES["index"].write(tmp_path / "dump")
    dump = read_dump(folder)
    want = dump.reference()
    np.save(folder / "topk_res.npy", want[:, ::-1].astype(np.int64))  # another order, but for -1 behind
    (found,) = check_dump(read_dump(folder))
    assert (found.lists.n_same_keys, found.passed, found.exact) == (len(want), True, False)
    assert not check_dump(read_dump(folder), exact=True)[0].passed
    for key in (dump.cache.k, dump.cache.k_scale):  # then all score the same
        key[...] = key[0, 0]
    np.save(folder / "idx_key_cache.npy", dump.cache.k)
    np.save(folder / "idx_key_scale.npy", dump.cache.k_scale[..., 0])
    (found,) = check_dump(read_dump(folder))
    assert found.lists.n_wrong == 0
    assert found.lists.n_close > 0
    wrong = want.copy()
    wrong[2, 0] = wrong[2, 1]
    np.save(folder / "topk_res.npy", wrong)
    (found,) = check_dump(read_dump(folder))
    assert (found.passed, found.lists.first_wrong, found.lists.n_wrong) == (False, 2, 1)
    assert "expected each position once" in str(found)
    assert json.loads(json.dumps(found.as_dict()))["lists"]["n_wrong"] == 1


def test_the_kernels_outputs_pass(tmp_path):
    """A folder's inputs are those of calls of the library."""
    dump = read_dump(CASES["both"].write(tmp_path / "both"))
    call, want, cache, keys = dump.call.prolog, dump.reference(), dump.prolog.cache.copy(), dump.keys.copy()
    prolog = mla.MlaProlog(call.weights, indexer=dump.indexer)
    out = prolog(call.x, call.cos, call.sin, call.cache_index, cache, indexer_cache=keys)
    assert check_output(mla.PrologOutput(*out), cache, want.prolog) == []
    assert check_indexer_output(out.indexer, keys, want.indexer) == []
    dump = read_dump(CASES["index"].write(tmp_path / "index"))
    table, act_seq, starts = dump.sequences
    index = mla.lightning_index(dump.out, dump.cache, table, act_seq, dump.settings.k, query_start_loc=starts)
    assert compare_bits("index", index, dump.reference()) is None
    for case in ("attention", "records"):
        dump = read_dump(CASES[case].write(tmp_path / case))
        table, act_seq, starts = dump.sequences
        order = None if case == "attention" else dump.settings.record_order
        latent = mla.sparse_attention(
            dump.out, dump.cache if case == "attention" else dump.records, dump.index, table, act_seq,
            softmax_scale=dump.settings.softmax_scale, query_start_loc=starts, record_order=order,
        )  # fmt: skip
        assert compare_bits("latent", latent, dump.reference()) is None


@EACH
def test_missing_inputs_are_listed_with_their_names(tmp_path, case):
    folder = CASES[case].write(tmp_path / "dump")
    arguments = read_dump(folder).call.arguments()
    gone = arguments.inputs[1]
    (folder / f"{gone.name}.npy").unlink()
    text = f"of {CASES[case].settings.operator} expected {', '.join(a.name for a in arguments.inputs)} as .npy"
    with pytest.raises(ValueError, match=re.escape(text)) as caught:
        read_dump(folder)
    assert str(caught.value).splitlines()[1].startswith(f"  {gone.name}, or {gone.others[0]}")
    assert str(caught.value).endswith("input_1")
    for path in folder.glob("*_golden.npy"):
        path.unlink()
    np.save(folder / f"{gone.name}.npy", np.zeros((3, 4), np.complex64))
    with pytest.raises((TypeError, ValueError), match=rf"^{gone.name} \({gone.name}\.npy\): expected "):
        read_dump(folder)


@pytest.mark.parametrize(
    ("case", "name", "edit", "text"),
    [
        ("index", "act_seq_key", lambda a: a - 100, "act_seq_key (act_seq_key.npy): expected lengths of at least 0"),
        ("index", "act_seq_key", lambda a: a + 2**30, "expected at most the 24 keys of a row of block_table, got"),
        ("index", "act_seq_key", lambda a: a[:0], "expected at least one sequence, got none"),
        ("index", "block_table", lambda a: a * 0 - 1, "block_table (block_table.npy): expected a block from 0"),
        ("index", "block_table", lambda a: a + 100, "at [0, 0], since the sequence has 21 keys, got "),
        ("index", "query_start_loc", lambda a: a + 1, "query_start_loc: expected 3 rising starts from 0 to 5"),
        ("index", "topk_res_golden", lambda a: a[..., :-1], "topk_res (topk_res_golden.npy): expected shape (5, 6)"),
        ("attention", "topk_indices", lambda a: a * 0 + 21, "topk_indices (topk_indices.npy): expected positions"),
        ("attention", "block_table", lambda a: a * 0 - 1, "block_table (block_table.npy): expected a block from 0"),
        ("dense", "kv_act_seqs", lambda a: a + 2**30, "kv_act_seqs (kv_act_seqs.npy): expected at most the 20 keys"),
        ("records", "nope_cache", lambda a: a[:, :-1], "nope_cache (nope_cache.npy): expected shape (any, 4, 1, 656)"),
        ("indexer", "k_cache_index_in", lambda a: a + 12, "k_cache_index_in[0]: expected -1 (no row) or a slot below"),
        ("both", "ip_k_cache", lambda a: a[:2], "ip_k_cache_scale (ip_k_cache_scale.npy): expected shape (2, 4, 1, 1)"),
        ("both", "mla_dequant_scale", lambda a: a[:0], "mla_dequant_scale (mla_dequant_scale.npy): expected a scale"),
        ("indexer", "w_qb_scale_in", lambda a: a[:0], "w_qb_scale_in (w_qb_scale_in.npy): expected 96 scales"),
    ],
)  # fmt: skip
def test_arrays_that_do_not_fit(tmp_path, case, name, edit, text):
    folder = CASES[case].write(tmp_path / "dump")
    if case == "both" and name == "mla_dequant_scale":  # then the prolog's cache would be bf16
        for cache in ("mla_kv_cache", "mla_kv_cache_golden"):
            np.save(folder / f"{cache}.npy", np.zeros((3, 4, 1, 64), np.uint16))
        np.save(folder / "mla_w_uq_qr.npy", np.zeros((50, 150), np.uint16))
    np.save(folder / f"{name}.npy", edit(np.load(folder / f"{name}.npy")))
    with pytest.raises((TypeError, ValueError), match=re.escape(text)):
        read_dump(folder)


@EACH
def test_a_bin_that_is_cut_is_named(tmp_path, case):
    folder = CASES[case].write(tmp_path / "dump", file_format="bin")
    for path in sorted(folder.glob("*.bin")):
        whole = path.read_bytes()
        path.write_bytes(whole[:-1])
        with pytest.raises(
            ValueError, match=rf"^\w+ \({path.name}\): expected .* bytes, .* got {len(whole) - 1} bytes$"
        ):
            read_dump(folder)
        path.write_bytes(whole)


def test_a_scale_is_asked_for(tmp_path):
    folder = CASES["attention"].write(tmp_path / "dump")
    (folder / "dims.json").unlink()
    with pytest.raises(ValueError, match=r"softmax_scale: expected a number \(softmax_scale in dims\.json, or"):
        read_dump(folder, DumpSettings(operator="sparse_flash_attention_quant", block_size=4))


@pytest.mark.parametrize(
    ("operator", "how", "text"),
    [
        ("lightning_indexer_quant", {"smooth": True}, "smooth: expected False, since lightning_indexer_quant has none"),
        ("mla_prolog_quant", {"sequences": 2}, "sequences: expected 1, since mla_prolog_quant has none, got 2"),
        ("mla_prolog_quant", {"context": 9}, "context: expected None, since mla_prolog_quant has none, got 9"),
        ("lightning_indexer_quant", {"quant": "none"}, "quant: expected one of b, got 'none'"),
        ("mla_indexer_prolog_quant", {"quant": "a"}, "quant: expected one of b, ab, got 'a'"),
        ("lightning_indexer_quant", {"sequences": 6}, "sequences: expected at most 5, got 6"),
        ("lightning_indexer_quant", {"context": 4}, "context: expected at least 5, got 4"),
        ("sparse_flash_attention_quant", {"n_blocks": 1, "context": 9}, "n_blocks: expected at least 3, got 1"),
        ("sparse_attention_antiquant", {}, "dims: expected kv_lora_rank 512 and qk_rope_head_dim 64, those of records"),
        ("mla_indexer_prolog_quant", {"cache_mode": "TND"}, "cache_mode: expected one of PA_BSND, PA_NZ, got 'TND'"),
        ("mla_indexer_prolog_quant", {"numerics": "cann"}, "numerics: expected one of pypto, got 'cann'"),
        ("lightning_indexer_prolog_quant", {"indexer_head_dim": 48}, "indexer_head_dim: expected a power of two"),
    ],
)  # fmt: skip
def test_what_cannot_be_written(tmp_path, operator, how, text):
    names = {field.name for field in fields(DumpSettings)}
    given = settings(operator, **(INDEXER | {key: value for key, value in how.items() if key in names}))
    choices = {key: value for key, value in how.items() if key not in names}
    with pytest.raises(ValueError, match=f"^{re.escape(text)}"):
        write_dump(tmp_path / "dump", 5, choices.pop("quant", "b"), settings=given, **choices)
    assert not (tmp_path / "dump").exists()


@pytest.mark.parametrize(
    ("field", "value", "error", "text"),
    [
        ("operator", "mla_prolog", ValueError, f"operator: expected one of {', '.join(DUMP_OPERATORS)}"),
        ("k", 0, ValueError, "k: expected at least 1, got 0"),
        ("indexer_heads", True, TypeError, "indexer_heads: expected int"),
        ("rope", "pairs", ValueError, "rope: expected one of half, interleaved"),
        ("softmax_scale", "1", TypeError, "softmax_scale: expected a number, got str"),
        ("softmax_scale", 1e39, ValueError, "softmax_scale: expected a number that is finite"),
        ("dense", 1, TypeError, "dense: expected bool, got int"),
        ("record_order", "vllm", ValueError, "record_order: expected one of cann, flashmla"),
        ("epsilon_k", -1, ValueError, "epsilon_k: expected a number of at least 0"),
    ],
)
def test_settings_that_do_not_fit(tmp_path, field, value, error, text):
    with pytest.raises(error, match=re.escape(text)):
        DumpSettings(**{field: value})
    (tmp_path / "dims.json").write_text(json.dumps({field: value}))
    with pytest.raises(error, match=rf"dims\.json: {re.escape(text)}"):
        dump_settings(tmp_path)
