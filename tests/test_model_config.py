"""What a configuration means for the prolog: families, the order of rope columns, and what is refused by name."""

import json
import re
from types import SimpleNamespace

import pytest
from click import BadParameter
from helpers.published_configs import COMPUTED, DEEPSEEK, GLM, KIMI_K25, REFUSED, YARN

from mla_numba import MlaDims, RopeTable
from mla_numba.base.model_config import FAMILIES, read_model_config
from mla_numba.cli.model_option import parse_dims
from mla_numba.rope_table import softmax_scale

DIMS = {key: DEEPSEEK[key] for key in MlaDims.__dataclass_fields__}
READERS = {
    "read_model_config": read_model_config,
    "MlaDims": MlaDims.from_hf,
    "RopeTable": RopeTable.from_hf,
    "softmax_scale": softmax_scale,
}


def as_object(config):
    return SimpleNamespace(**{key: as_object(v) if key == "text_config" else v for key, v in config.items()})


class TestPublished:
    @pytest.mark.parametrize("form", [dict, as_object])
    @pytest.mark.parametrize("model", COMPUTED)
    def test_computed(self, model, form):
        config, dims, epsilon = COMPUTED[model]
        found = read_model_config(form(config))
        assert MlaDims.from_hf(form(config)) == dims
        assert found.model_type in FAMILIES
        assert found.rope_interleave
        assert found.epsilon == epsilon
        assert found.name == ("config.text_config" if "text_config" in config else "config")

    @pytest.mark.parametrize("form", [dict, as_object])
    @pytest.mark.parametrize("reader", READERS)
    @pytest.mark.parametrize("model", REFUSED)
    def test_refused(self, model, reader, form):
        config, text = REFUSED[model]
        with pytest.raises(ValueError, match=f"^{re.escape(text)}"):
            READERS[reader](form(config))

    def test_nested_settings_are_found_by_all(self):
        text = KIMI_K25["text_config"]
        for form in (dict, as_object):
            assert (
                RopeTable.from_hf(form(KIMI_K25)).frequencies.tolist() == RopeTable.from_hf(text).frequencies.tolist()
            )
            assert softmax_scale(form(KIMI_K25)) == softmax_scale(text)

    def test_a_refused_family_without_the_setting_that_tells(self):
        for model_type, reason in (
            ("longcat_flash", "it multiplies queries and latents by mla_scale_q_lora and mla_scale_kv_lora"),
            ("kimi_linear", "its keys have no rope"),
            ("deepseek_v4", "its keys are compressed over tokens"),
        ):
            with pytest.raises(ValueError, match=rf"^config\.model_type: expected .*got '{model_type}' \({reason}\)$"):
                read_model_config(DIMS | {"model_type": model_type})


class TestFamily:
    def test_none_is_as_deepseek(self):
        found = read_model_config(DIMS)
        assert (found.model_type, found.rope_interleave, found.epsilon) == (None, True, 1e-6)
        assert read_model_config({}).rope_interleave
        assert MlaDims.from_hf(DIMS) == MlaDims.deepseek_v32()

    @pytest.mark.parametrize(
        ("names", "family"),
        [
            ({"architectures": ["DeepseekV3ForCausalLM"]}, "deepseek_v3"),
            ({"architectures": ["DeepseekV3ForCausalLMNextN"]}, "deepseek_v3"),
            ({"architectures": ["GlmMoeDsaModel"]}, "glm_moe_dsa"),
            ({"architectures": ["DeepseekV3ForCausalLM"], "model_type": "kimi_k2"}, "kimi_k2"),
            ({"architectures": ["SomethingElse"], "model_type": "deepseek_v3"}, "deepseek_v3"),
            ({"architectures": None, "model_type": "youtu"}, "youtu"),
            ({"architectures": [], "model_type": None}, None),
        ],
    )
    def test_by_name(self, names, family):
        assert read_model_config(DIMS | names).model_type == family
        assert read_model_config({"text_config": DIMS} | names).model_type == family
        if family is not None:
            assert read_model_config({"text_config": DIMS | names, "model_type": "of_pictures"}).model_type == family

    @pytest.mark.parametrize(
        ("names", "error", "text"),
        [
            ({"model_type": "llama"}, ValueError, "config.model_type: expected a model .*deepseek_v3.*, got 'llama'$"),
            ({"model_type": "deepseek_ref"}, ValueError, "config.model_type: expected .*, got 'deepseek_ref'$"),
            ({"model_type": "x" * 5000}, ValueError, "config.model_type: .* and 4940 more characters$"),
            ({"model_type": 3}, TypeError, "config.model_type: expected a string, got int"),
            (
                {"architectures": ["DeepseekV4ForCausalLM"]},
                ValueError,
                "config.architectures: .* compressed over tokens",
            ),
            ({"architectures": ["LlamaForCausalLM"]}, ValueError, "config.architectures: .*got 'LlamaForCausalLM'$"),
            ({"architectures": "DeepseekV3"}, TypeError, "config.architectures: expected a list of strings, got 'Deep"),
            ({"architectures": [None]}, TypeError, "config.architectures: expected a list of strings, got list of 1"),
            (
                {"model_type": "deepseek_v3", "architectures": ["DeepseekV4ForCausalLM"]},
                ValueError,
                "config.architectures: expected those of model_type deepseek_v3, got 'DeepseekV4ForCausalLM'",
            ),
            (
                {"model_type": "deepseek_v3", "architectures": ["MiniCPM3ForCausalLM"]},
                ValueError,
                "config.architectures: expected those of model_type deepseek_v3, got 'MiniCPM3ForCausalLM'",
            ),
            ({"text_config": "x"}, TypeError, "config.text_config: expected a mapping, got str"),
            ({"text_config": [DIMS]}, TypeError, "config.text_config: expected a mapping, got list"),
            (
                {"text_config": {"model_type": "llama"}},
                ValueError,
                "config.text_config.model_type: expected .*got 'llama'",
            ),
        ],
    )
    def test_errors(self, names, error, text):
        with pytest.raises(error, match=f"^{text}"):
            MlaDims.from_hf(DIMS | names)

    @pytest.mark.parametrize("model_type", [None, *FAMILIES])
    def test_order_of_rope_columns(self, model_type):
        always = {"deepseek_v2": True, "deepseek_v32": True, "glm_moe_dsa": True, "minicpm3": False}.get(model_type)
        config = DIMS | {"model_type": model_type}
        assert read_model_config(config).rope_interleave is (always is not False)
        for given in (True, False):
            if always in (None, given):
                assert read_model_config(config | {"rope_interleave": given}).rope_interleave is given
            else:
                text = rf"^config\.rope_interleave: expected {str(always).lower()}, which {model_type} always has, got"
                with pytest.raises(ValueError, match=text):
                    read_model_config(config | {"rope_interleave": given})
        with pytest.raises(TypeError, match=r"^config\.rope_interleave: expected bool, got str"):
            read_model_config(config | {"rope_interleave": "false"})

    def test_epsilon(self):
        assert read_model_config({"model_type": "glm_moe_dsa"}).epsilon == 1e-5
        assert read_model_config({"model_type": "deepseek_v3", "rms_norm_eps": None}).epsilon == 1e-6
        assert read_model_config(GLM | {"rms_norm_eps": 1e-2}).epsilon == 1e-2
        for wrong in (-1e-6, float("nan"), float("inf"), 1e39, 10**400):
            with pytest.raises(ValueError, match=r"^config\.rms_norm_eps: expected a number"):
                _ = read_model_config({"rms_norm_eps": wrong}).epsilon

    def test_v_head_dim(self):
        assert read_model_config(DEEPSEEK).v_head_dim == 128
        assert read_model_config(DIMS).v_head_dim is None
        minicpm = {"model_type": "minicpm3", "hidden_size": 2560, "num_attention_heads": 40}
        assert read_model_config(minicpm).v_head_dim == 64
        assert read_model_config(minicpm | {"v_head_dim": 32}).v_head_dim == 32
        for heads in (0, None, "40"):
            assert read_model_config(minicpm | {"num_attention_heads": heads}).v_head_dim is None


class TestSettings:
    @pytest.mark.parametrize("model", [{}, {"model_type": "deepseek_v3"}, {"model_type": "minicpm3"}])
    @pytest.mark.parametrize("reader", READERS)
    @pytest.mark.parametrize(
        ("setting", "value", "said"),
        [
            ("attention_bias", True, "expected false (the prolog adds no bias), got true"),
            ("attn_output_gate", True, "expected false (the prolog has no gates), got true"),
            ("llama_4_scaling", {"beta": 0.1}, "expected none (the prolog multiplies no query by a factor of"),
            ("mla_scale_kv_lora", True, "expected false (the prolog multiplies no normalised latent by a factor)"),
            ("mla_scale_q_lora", True, "expected false (the prolog multiplies no normalised latent by a factor)"),
            ("mla_use_nope", True, "expected false (the prolog rotates the rope columns), got true"),
            ("original_seq_len", 4096, "expected none (scaling belongs into rope_scaling, under the names of transf"),
            ("rope_factor", 40, "expected none (scaling belongs into rope_scaling, under the names of transformers)"),
            ("use_qk_norm", True, "expected false (the prolog norms latents, not heads), got true"),
            ("attention_multiplier", 0.5, "expected none (this prolog knows no such setting of an attention), got 0.5"),
            ("mla_of_tomorrow", [1, 2], "expected none (this prolog knows no such setting of an attention), got list"),
            ("no_rope_layers", [0], "expected none (this prolog knows no such setting of an attention), got list of 1"),
            ("qk_rope_scale", "x", "expected none (this prolog knows no such setting of an attention), got 'x'"),
        ],
    )  # fmt: skip
    def test_refused_by_name(self, reader, model, setting, value, said):
        config = DEEPSEEK | {"architectures": None, "model_type": None, "rope_scaling": None} | model
        for form in (dict, as_object):
            for name, given in (
                ("config", config | {setting: value}),
                ("config.text_config", {"text_config": config | {setting: value}}),
            ):
                with pytest.raises(ValueError, match=f"^{re.escape(f'{name}.{setting}: {said}')}"):
                    READERS[reader](form(given))

    @pytest.mark.parametrize("nothing", [None, False, 0, [], {}])
    def test_a_setting_that_is_off_is_none(self, nothing):
        for setting in ("attention_bias", "mla_use_nope", "mla_of_tomorrow", "llama_4_scaling", "qkv_bias"):
            assert MlaDims.from_hf(DEEPSEEK | {setting: nothing}) == MlaDims.deepseek_v32()

    def test_what_stands_behind_attention_is_free(self):
        free = {"attention_dropout": 0.1, "sliding_window": 128, "head_dim": 192, "index_topk": 3, "use_cache": True}
        assert MlaDims.from_hf(DEEPSEEK | free) == MlaDims.deepseek_v32()

    @pytest.mark.parametrize("where", ["rope_scaling", "rope_parameters"])
    @pytest.mark.parametrize("reader", READERS)
    def test_within_the_rope(self, where, reader):
        for setting in ("llama_4_scaling_beta", "mla_use_nope"):
            config = DEEPSEEK | {"rope_scaling": None, where: YARN | {setting: 0.1}}
            with pytest.raises(ValueError, match=rf"^config\.{where}\.{setting}: expected none .*got 0\.1$"):
                READERS[reader](config)

    @pytest.mark.parametrize(
        ("changes", "error", "text"),
        [
            ({"qk_head_dim": 191}, ValueError, r"config\.qk_head_dim: expected 192, qk_nope_head_dim \+ .*, got 191"),
            (
                {"partial_rotary_factor": 0.5},
                ValueError,
                r"config\.partial_rotary_factor: expected 64 of 64 .*got 0\.5",
            ),
            ({"partial_rotary_factor": 0}, ValueError, r"config\.partial_rotary_factor: expected 64 of 64 .*got 0 "),
            ({"partial_rotary_factor": "1"}, TypeError, r"config\.partial_rotary_factor: expected a number, got str"),
            (
                {"rope_scaling": YARN | {"partial_rotary_factor": 1 / 3}},
                ValueError,
                r"config\.partial_rotary_factor: expected 64 of 64 columns",
            ),
            (
                {"model_type": "mistral4", "architectures": None, "partial_rotary_factor": 1.0},
                ValueError,
                r"config\.partial_rotary_factor: expected 64 of 192 columns, .*got 1\.0 of them",
            ),
        ],
    )
    def test_widths(self, changes, error, text):
        for reader in READERS.values():
            with pytest.raises(error, match=f"^{text}"):
                reader(DEEPSEEK | changes)

    def test_the_part_that_is_rotated(self):
        assert read_model_config(DEEPSEEK | {"partial_rotary_factor": 1.0, "qk_head_dim": 192})
        of_head = {"model_type": "mistral4", "architectures": None, "rope_scaling": {"partial_rotary_factor": 64 / 192}}
        assert read_model_config(DEEPSEEK | of_head)


LARGE = 10**30


class TestFilesOfStrangers:
    """What a config.json may hold that no model has: an error that names the field, at once."""

    @pytest.mark.parametrize(
        ("changes", "text"),
        [
            (dict.fromkeys(DIMS), "config.hidden_size: expected an int, got none"),
            ({"hidden_size": "7168"}, "config.hidden_size: expected int, got str"),
            ({"hidden_size": 7168.0}, "config.hidden_size: expected int, got float"),
            ({"q_lora_rank": True}, "config.q_lora_rank: expected int, got bool"),
            ({"kv_lora_rank": []}, "config.kv_lora_rank: expected int, got list"),
            ({"hidden_size": LARGE}, f"config.hidden_size: expected at most {2**31 - 1}, got {LARGE}"),
            ({"hidden_size": -(10**4000)}, "config.hidden_size: expected at least 1, got an int of 13288 bits"),
            ({"qk_rope_head_dim": LARGE}, f"config.qk_rope_head_dim: expected at most {2**31 - 1}, got {LARGE}"),
            (
                {"hidden_size": 2**31 - 1, "q_lora_rank": 2**31 - 2},
                f"config.hidden_size: expected dimensions whose weights take at most {2**36} bytes a layer, got 21474",
            ),
            ({"num_attention_heads": 10**6}, "config.num_attention_heads: expected dimensions whose weights"),
        ],
    )
    def test_dims(self, changes, text, tmp_path):
        path = tmp_path / "config.json"
        path.write_text(json.dumps(DIMS | changes))
        with pytest.raises(BadParameter, match=f"^{re.escape(repr(str(path)))}: {re.escape(text)}"):
            parse_dims(str(path))

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ('{"hidden_size": NaN}', "expected JSON, got the number NaN"),
            ("{" + '"a":{' * 100_000, "nested too deeply"),
            ("[1]", "expected a JSON object, got list"),
            (" " * (16 << 20) + "{}", f"expected at most {16 << 20} bytes of JSON, got more"),
            ('{"hidden_size": 1' + "0" * 5000 + "}", "expected JSON"),
        ],
    )
    def test_json(self, text, said, tmp_path):
        path = tmp_path / "config.json"
        path.write_text(text)
        with pytest.raises(BadParameter, match=rf"config\.json: .*{said}"):
            parse_dims(str(path))

    @pytest.mark.parametrize(
        "value",
        [None, float("nan"), float("inf"), -LARGE, LARGE, 10**400, 1e-320, "1", [1], {}, True],
        ids=lambda value: str(value)[:5],
    )
    def test_every_number_of_a_rope(self, value):
        """Each is read or refused, by its name and in the words of all errors."""
        fields = ("rope_theta", "max_position_embeddings", "qk_rope_head_dim", "qk_nope_head_dim", "rope_scaling")
        for field in (*fields, "original_max_position_embeddings"):
            self.reads_or_names(DEEPSEEK | {field: value}, field)
        for field in YARN:
            untyped = (field, value) == ("type", None)
            self.reads_or_names(DEEPSEEK | {"rope_scaling": YARN | {field: value}}, "factor" if untyped else field)

    @staticmethod
    def reads_or_names(config, field):
        said = []
        for reader in (RopeTable.from_hf, softmax_scale):
            try:
                assert reader(config) is not None
            except (TypeError, ValueError) as error:
                said.append(str(error))
        assert all(re.match(rf"config\.(rope_scaling\.)?{field}: expected ", text) for text in said), said


class TestCheckpoint:
    DIMS = MlaDims(32, 2, 16, 16, 8, 4)

    def open(self, folder, **config):
        """The checkpoint with these settings in place of its own; ... leaves one out, `text_config` takes them all."""
        from helpers.checkpoint_maker import config_of, make_checkpoint

        from mla_numba import Checkpoint

        pytest.importorskip("safetensors")
        make_checkpoint(folder, self.DIMS, 6, "bf16", layers=(0,))
        settings = config_of(self.DIMS, 6, "bf16") | config
        settings = {key: value for key, value in settings.items() if value is not ...}
        if settings.pop("nested", False):
            settings = {"model_type": "kimi_k25", "text_config": settings}
        (folder / "config.json").write_text(json.dumps(settings))
        return Checkpoint(folder)

    def test_nested_settings(self, tmp_path):
        plain = self.open(tmp_path, rms_norm_eps=1e-3)
        nested = self.open(tmp_path, rms_norm_eps=1e-3, nested=True)
        assert (nested.dims, nested.v_head_dim) == (plain.dims, plain.v_head_dim) == (self.DIMS, 6)
        assert nested.load_layer(0, "none").weights.epsilon_cq == 1e-3
        assert (
            RopeTable.from_hf(nested.config).frequencies.tolist()
            == RopeTable.from_hf(plain.config).frequencies.tolist()
        )

    def test_order_and_epsilon_are_the_familys(self, tmp_path):
        pairs = self.open(tmp_path).load_layer(0, "none").weights
        unsaid = self.open(tmp_path, rope_interleave=None, rms_norm_eps=None).load_layer(0, "none").weights
        said = self.open(tmp_path, rope_interleave=False).load_layer(0, "none").weights
        family = {"architectures": ["MiniCPM3ForCausalLM"], "rms_norm_eps": ...}
        halves = self.open(tmp_path, **family).load_layer(0, "none").weights
        assert (unsaid.w_dkv_kr == pairs.w_dkv_kr).all()
        assert unsaid.epsilon_cq == 1e-6
        assert halves.epsilon_ckv == 1e-5
        d = self.DIMS
        for name, width in (("w_dkv_kr", d.kv_a_dim), ("w_uq_qr", d.q_head_dim)):
            first = [
                getattr(w, name).reshape(len(getattr(w, name)), -1, width)[..., -4:] for w in (pairs, said, halves)
            ]
            assert (first[1] == first[2]).all()
            assert (first[1][..., [0, 2, 1, 3]] == first[0]).all()
            assert (first[1] != first[0]).any()

    @pytest.mark.parametrize(
        ("config", "error", "text"),
        [
            ({"mla_use_nope": True}, ValueError, "config.mla_use_nope: expected false"),
            ({"mla_use_nope": True, "nested": True}, ValueError, "config.text_config.mla_use_nope: expected false"),
            ({"mla_scale_q_lora": True}, ValueError, "config.mla_scale_q_lora: expected false"),
            ({"model_type": "longcat_flash", "architectures": ...}, ValueError, "config.model_type: expected a model"),
            ({"rope_scaling": {"llama_4_scaling_beta": 0.1}}, ValueError, "config.rope_scaling.llama_4_scaling_beta: "),
            (
                {"q_lora_rank": None, "nested": True},
                ValueError,
                "config.text_config.q_lora_rank: expected an int, got n",
            ),
            ({"kv_lora_rank": ...}, ValueError, "config.kv_lora_rank: expected an int, got none"),
            ({"hidden_size": 2**31 - 1, "q_lora_rank": 2**30}, ValueError, "config.hidden_size: expected dimensions"),
            ({"v_head_dim": 2**31 - 1}, ValueError, "config.v_head_dim: expected at most 1073741824, got 2147483647"),
            ({"v_head_dim": 1.5}, TypeError, "config.v_head_dim: expected int, got float"),
            ({"rms_norm_eps": -1}, ValueError, "config.rms_norm_eps: expected a number of at least 0"),
            ({"rope_interleave": "true"}, TypeError, "config.rope_interleave: expected bool, got str"),
        ],
    )
    def test_errors_name_file_and_field(self, tmp_path, config, error, text):
        with pytest.raises(error, match=f"^{re.escape(f'{tmp_path}/config.json: {text}')}"):
            self.open(tmp_path, **config)

    @pytest.mark.parametrize("text", ['{"hidden_size": NaN}', "[" * 100_000, '{"hidden_size": 1' + "0" * 5000 + "}"])
    def test_json_that_no_model_has(self, tmp_path, text):
        from mla_numba import Checkpoint

        pytest.importorskip("safetensors")
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(ValueError, match=rf"^{re.escape(str(tmp_path))}/config\.json: expected "):
            Checkpoint(tmp_path)
