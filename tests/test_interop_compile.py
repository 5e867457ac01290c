"""The operators under opcheck, `torch.compile(fullgraph=True)` and `torch.export`."""

import gc

import pytest
from helpers import HAS_CXX, MODES

torch = pytest.importorskip("torch")

from helpers.interop_cases import CAPACITY, LEADS, assert_is_reference, clone, make_case  # noqa: E402
from torch._dynamo.testing import CompileCounterWithBackend  # noqa: E402
from torch._inductor.utils import run_and_get_code  # noqa: E402

from mla_numba.interop.torch.operator import mla_prolog, mla_prolog_out  # noqa: E402
from mla_numba.interop.torch.prolog import TorchCache  # noqa: E402

CHECKS = {"test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic"}


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch.compiler.reset()


class TestOpcheck:
    @pytest.mark.parametrize("mode", MODES)
    @pytest.mark.parametrize("cache_mode", LEADS)
    def test_new_outputs(self, mode, cache_mode):
        case = make_case(mode, cache_mode)
        found = torch.library.opcheck(mla_prolog, case.operands())
        assert found == dict.fromkeys(CHECKS, "SUCCESS")

    @pytest.mark.parametrize("mode", ["none", "b"])
    def test_given_outputs(self, mode):
        case = make_case(mode)
        operands = (*case.operands()[:-2], *case.prolog.allocate_output(9))
        assert torch.library.opcheck(mla_prolog_out, operands) == dict.fromkeys(CHECKS, "SUCCESS")

    @pytest.mark.parametrize("operator", [mla_prolog, mla_prolog_out], ids=str)
    def test_a_gradient_is_an_error(self, operator):
        case = make_case()
        operands = list(case.operands())
        if operator is mla_prolog_out:
            operands[-2:] = case.prolog.allocate_output(9)
        operands[1].requires_grad_()
        found = torch.library.opcheck(operator, tuple(operands), test_utils="test_autograd_registration")
        assert found == {"test_autograd_registration": "SUCCESS"}
        with pytest.raises(ValueError, match=r"^x: expected a tensor that needs no gradient"):
            operator(*operands)


def around(prolog):
    """A function that computes something before and behind the prolog, and reads the cache that it wrote."""

    def run(x, cos, sin, cache_index, cache):
        out = prolog(x * 1, cos, sin, cache_index, cache)
        return out, out.query_nope.float() + 1, cache.kr.float()

    return run


class TestCompile:
    @pytest.mark.parametrize("mode", ["none", "ab smooth"])
    @pytest.mark.parametrize("cache_mode", ["PA_NZ", "TND"])
    def test_the_reference_s_bits(self, mode, cache_mode):
        case = make_case(mode, cache_mode)
        want = case.reference()
        out = torch.compile(case.prolog, fullgraph=True)(*case.call)
        assert_is_reference(out, case.cache, want)

    @pytest.mark.skipif(not HAS_CXX, reason="no C++ compiler for what the graph computes beside the prolog")
    def test_within_a_graph_no_cache_is_copied(self):
        case = make_case()
        want = case.reference()
        run = torch.compile(around(case.prolog), fullgraph=True)
        (out, more, kr), code = run_and_get_code(run, *case.call)
        assert_is_reference(out, case.cache, want)
        assert torch.equal(more, out.query_nope.float() + 1)
        assert torch.equal(torch.nan_to_num(kr), torch.nan_to_num(case.cache.kr.float()))
        made = [line for line in "".join(code).splitlines() if "empty_strided" in line and "(3, 16, 1" in line]
        assert len(made) == 1, made  # kr.float() alone
        assert "torch.float32" in made[0]

    def test_into_given_outputs(self):
        case = make_case()
        want = case.reference()
        out = case.prolog.allocate_output(9)
        assert torch.compile(case.prolog, fullgraph=True)(*case.call, out) is not None
        assert_is_reference(out, case.cache, want)

    def test_blocks_of_a_larger_cache(self):
        case = make_case()
        whole = [torch.cat([tensor, tensor]) for tensor in case.cache[:3]]

        def run(inputs, kv, kr, k_scale):
            return case.prolog(*inputs, TorchCache(kv[3:], kr[3:], k_scale[3:]))

        want = case.reference()
        out = torch.compile(run, fullgraph=True)(case.inputs, *whole)
        assert_is_reference(out, TorchCache(*(tensor[3:] for tensor in whole)), want)
        for tensor, old in zip(whole, case.cache[:3], strict=True):
            assert torch.equal(tensor[:3].view(torch.uint8), old.view(torch.uint8))

    @pytest.mark.parametrize("dynamic", [True, None])
    def test_any_number_of_tokens_and_layers_in_few_graphs(self, dynamic):
        counter = CompileCounterWithBackend("aot_eager")
        layers = [make_case("b", seed=seed) for seed in range(5)]
        compiled = [torch.compile(c.prolog, fullgraph=True, dynamic=dynamic, backend=counter) for c in layers]
        for t in (9, 1, 2, 0, 5, 17, 48):
            for layer, run in zip(layers, compiled, strict=True):
                case = make_case("b", t=t)._replace(weights=layer.weights, prolog=layer.prolog)
                want = case.reference()
                assert_is_reference(run(*case.call), case.cache, want)
        # 0 and 1 are numbers of their own to the compiler, and the first size too until another one is seen.
        assert counter.frame_count <= 4, counter.frame_count

    def test_a_model_of_several_layers_is_one_graph(self):
        layers = [make_case("b", seed=seed) for seed in range(4)]
        prologs = torch.nn.ModuleList(case.prolog for case in layers)
        counter = CompileCounterWithBackend("inductor")

        @torch.compile(fullgraph=True, backend=counter)
        def model(inputs, caches):
            return [prolog(*inputs, cache) for prolog, cache in zip(prologs, caches, strict=True)]

        inputs = layers[0].inputs
        wants = [case._replace(inputs=inputs).reference() for case in layers]
        for out, case, want in zip(model(inputs, [c.cache for c in layers]), layers, wants, strict=True):
            assert_is_reference(out, case.cache, want)
        assert counter.frame_count == 1

    def test_errors_reach_the_caller(self):
        case = make_case()
        run = torch.compile(case.prolog, fullgraph=True)
        before = clone(case.cache)
        wrong = list(case.inputs)
        wrong[3] = torch.full((9,), CAPACITY)
        with pytest.raises(
            ValueError, match=r"^cache_index\[0\]: expected -1 \(no row\) or a slot below the capacity 48"
        ):
            run(*wrong, case.cache)
        with pytest.raises(TypeError, match=r"^x: expected dtype bfloat16, got float16"):
            run(case.inputs[0].half(), *case.call[1:])
        for tensor, old in zip(case.cache[:3], before[:3], strict=True):
            assert torch.equal(tensor.view(torch.uint8), old.view(torch.uint8))
        with pytest.raises(Exception, match=r"x: expected a tensor that needs no gradient"):
            run(case.inputs[0].requires_grad_(), *case.call[1:])

    def test_in_inference_mode(self):
        case = make_case()
        want = case.reference()
        with torch.inference_mode():
            assert_is_reference(torch.compile(case.prolog, fullgraph=True)(*case.call), case.cache, want)

    def test_after_the_module_is_gone(self):
        case = make_case()
        operands = case.operands()
        run = torch.compile(lambda *operands: mla_prolog(*operands), fullgraph=True, backend="aot_eager")
        run(*operands)
        del case
        gc.collect()
        with pytest.raises(
            ValueError, match=r"^handle: expected that of a prolog which is alive in this process, got "
        ):
            run(*operands)


def test_export():
    case = make_case()
    tokens = torch.export.Dim("tokens", min=2, max=CAPACITY)
    shapes = ({0: tokens}, {0: tokens}, {0: tokens}, {0: tokens}, TorchCache(None, None, None, None))
    program = torch.export.export(case.prolog, case.call, dynamic_shapes=shapes)
    case = make_case(t=17)._replace(prolog=case.prolog)
    want = case.reference()
    assert_is_reference(program.module()(*case.call), case.cache, want)
