"""Tensors and arrays over the same memory, and what is refused."""

import gc

import ml_dtypes
import numpy as np
import pytest
from helpers import BF16

torch = pytest.importorskip("torch")

from torch._subclasses import FakeTensorMode  # noqa: E402

from mla_numba.interop.torch.prolog import to_numpy, to_torch  # noqa: E402

DTYPES = {
    torch.bfloat16: BF16,
    torch.float8_e4m3fn: np.dtype(ml_dtypes.float8_e4m3fn),
    torch.float8_e8m0fnu: np.dtype(ml_dtypes.float8_e8m0fnu),
    torch.int8: np.dtype(np.int8),
    torch.int32: np.dtype(np.int32),
    torch.int64: np.dtype(np.int64),
    torch.float16: np.dtype(np.float16),
    torch.float32: np.dtype(np.float32),
}


def address(array):
    return array.__array_interface__["data"][0]


@pytest.mark.parametrize(("theirs", "ours"), DTYPES.items(), ids=str)
@pytest.mark.parametrize("shape", [(3, 5), (0, 5), (), (2, 3, 1, 4)], ids=str)
def test_both_ways_over_the_same_memory(theirs, ours, shape):
    tensor = torch.zeros(shape, dtype=theirs)
    array = to_numpy(tensor)
    assert (array.dtype, array.shape) == (ours, shape)
    array.view(np.uint8 if shape else ours)[...] = 1
    back = to_torch(array)
    assert (back.dtype, tuple(back.shape)) == (theirs, shape)
    if tensor.numel():
        assert address(array) == tensor.data_ptr() == back.data_ptr()
        assert torch.equal(back.float(), tensor.float())
        assert tensor.float().abs().sum() > 0


@pytest.mark.parametrize("theirs", [torch.bfloat16, torch.int8], ids=str)
def test_strides_and_offset_are_kept(theirs):
    whole = torch.arange(48).to(theirs).reshape(4, 12)
    view = whole[1::2, 3:9:2]
    array = to_numpy(view)
    assert address(array) == view.data_ptr()
    assert array.strides == tuple(n * array.itemsize for n in view.stride())
    assert array.tolist() == view.tolist()
    back = to_torch(array)
    assert (back.data_ptr(), back.stride()) == (view.data_ptr(), view.stride())


@pytest.mark.parametrize("theirs", [torch.bfloat16, torch.float32], ids=str)
def test_the_memory_lives_as_long_as_either(theirs):
    array = to_numpy(torch.full((1000,), 3, dtype=theirs))
    gc.collect()
    assert (array.astype(np.float32) == 3).all()
    tensor = to_torch(array * np.ones((), array.dtype))
    del array
    gc.collect()
    assert (tensor == 3).all()


def test_a_tensor_that_requires_grad():
    parameter = torch.nn.Parameter(torch.ones(3, dtype=torch.bfloat16))
    with pytest.raises(ValueError, match=r"^x: expected a tensor that needs no gradient .* requires grad$"):
        to_numpy(parameter, "x")
    for context in (torch.no_grad(), torch.inference_mode()):
        with context:
            assert address(to_numpy(parameter)) == parameter.data_ptr()
    assert address(to_numpy(parameter.detach())) == parameter.data_ptr()


class Subclass(torch.Tensor):
    pass


def test_a_subclass_with_memory_is_taken():
    tensor = torch.ones(3, dtype=torch.bfloat16).as_subclass(Subclass)
    array = to_numpy(tensor)
    assert type(array) is np.ndarray
    assert address(array) == tensor.data_ptr()


def fake():
    with FakeTensorMode():
        return torch.zeros(2)


REFUSED = {
    "array": (lambda: np.zeros(2), TypeError, "expected a tensor, got ndarray"),
    "none": (lambda: None, TypeError, "expected a tensor, got NoneType"),
    "meta": (lambda: torch.zeros(2, device="meta"), ValueError, "expected a tensor on the CPU, got one on meta"),
    "fake": (fake, TypeError, "expected a tensor with memory, got a FakeTensor"),
    "sparse": (lambda: torch.eye(2).to_sparse(), ValueError, "expected a strided tensor, got layout torch.sparse_coo"),
    "mkldnn": (lambda: torch.eye(2).to_mkldnn(), ValueError, "expected a strided tensor, got layout torch._mkldnn"),
    "conj": (
        lambda: torch.zeros(2, dtype=torch.complex64).conj(), ValueError,
        "expected values as they lie in memory, got a conjugate view",
    ),
    "neg": (
        lambda: torch.zeros(2, dtype=torch.complex64).conj().imag, ValueError,
        "expected values as they lie in memory, got a negative view",
    ),
    "dtype": (
        lambda: torch.zeros(2, dtype=torch.float8_e5m2), TypeError,
        "expected a plain tensor of a NumPy dtype, got Tensor of torch.float8_e5m2: ",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_tensors_that_are_refused(case):
    make, error, text = REFUSED[case]
    with pytest.raises(error) as caught:
        to_numpy(make(), "x")
    assert str(caught.value).startswith(f"x: {text}")


def test_within_a_transform():
    with pytest.raises(TypeError, match=r"^x: expected a plain tensor of a NumPy dtype, got Tensor of torch.float32: "):
        torch.vmap(lambda x: to_numpy(x, "x"))(torch.zeros(2, 3))


def read_only():
    array = np.zeros(2)
    array.flags.writeable = False
    return array


REFUSED_ARRAYS = {
    "tensor": (lambda: torch.zeros(2), TypeError, "expected a NumPy array, got Tensor"),
    "order": (
        lambda: np.zeros(2, ">f4"), TypeError,
        "expected the machine's byte order, got dtype >f4 in byte order '>'",
    ),
    "read-only": (read_only, ValueError, "expected a writable array, as a tensor over it can be written"),
    "negative": (
        lambda: np.zeros(4, BF16)[::-1], ValueError,
        "expected strides of whole elements that are not negative, got (-2,) for bfloat16",
    ),
    "fraction": (
        lambda: np.zeros(8, "f4,i1")["f0"], ValueError,
        "expected strides of whole elements that are not negative, got (5,) for float32",
    ),
    "dtype": (lambda: np.zeros(2, "S3"), TypeError, "expected a dtype that torch has, got |S3"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED_ARRAYS)
def test_arrays_that_are_refused(case):
    make, error, text = REFUSED_ARRAYS[case]
    with pytest.raises(error) as caught:
        to_torch(make(), "x")
    assert str(caught.value).startswith(f"x: {text}")
