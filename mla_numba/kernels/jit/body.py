"""How compiled code hands a kernel's body to whoever runs it: an address, and a frame that holds the arguments.

The frame's arrays own nothing: Python holds the arguments of a call until it returns, and counting references would be
atomic operations on lines that all threads share. And its tuples have the names that the body's annotations give them:
from Python they come as plain ones, which Numba takes three times as fast. What is the same in many calls, a named
tuple of many arrays, can come as one array of words that is made once, see `hold`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, get_type_hints

import numba
import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic
from numba.np.arrayobj import populate_array

from .callee import overload_callee

__all__ = ["call_region", "call_worker", "frame_maker", "hold"]

_WORKER = (types.int64, types.voidptr)  # index, frame
_REGION = (types.int64,) * 4  # n_threads, n, worker, frame


def frame_maker(body: Callable[..., None]) -> Any:
    """`make_frame(args)` for compiled code: (address, frame) of `body`, a callee, as `call_worker` takes them.

    They are good until the function returns that called it.
    """

    @intrinsic
    def make_frame(typingctx: Any, args: Any) -> Any:
        function = typingctx.resolve_value_type(body)
        hints = list(get_type_hints(body).values())[1:]  # but the index's
        kinds = [_named(kind, hint) for kind, hint in zip(args, hints, strict=False)]  # and the result's
        call = function.get_call_type(typingctx, (types.int64, *kinds), {})

        def codegen(context: Any, builder: Any, sig: Any, values: Any) -> Any:
            fields = [
                _borrowed(context, builder, kind, args[i], builder.extract_value(values[0], i))
                for i, kind in enumerate(kinds)
            ]
            layout = ir.LiteralStructType([value.type for value in fields])
            frame = cgutils.alloca_once(builder, layout)
            for i, value in enumerate(fields):
                builder.store(value, cgutils.gep_inbounds(builder, frame, 0, i))
            worker = _define_worker(context, builder.module, context.get_function(function, call), body, layout)
            word = context.get_value_type(types.int64)
            pair = [builder.ptrtoint(worker, word), builder.ptrtoint(frame, word)]
            return context.make_tuple(builder, sig.return_type, pair)

        return types.UniTuple(types.int64, 2)(args), codegen

    return make_frame


_held: dict[type, Any] = {}  # the types of what is held, by the class of the named tuple


def hold(thing: Any) -> Any:
    """A named tuple of arrays, numbers and such tuples as an array of words: addresses and shapes, and the numbers.

    A kernel takes it in place of the tuple. The arrays have to live as long. A class has the same types every time: the
    signature by which a kernel is kept has only the words.
    """
    kind = numba.typeof(thing)
    assert _held.setdefault(type(thing), kind) == kind, (kind, _held[type(thing)])
    return np.array(list(_words(thing)), np.int64)


def _words(thing: Any) -> Iterator[int]:
    for field in thing:
        if isinstance(field, tuple):
            yield from _words(field)
        elif isinstance(field, np.ndarray):
            yield from (field.ctypes.data, *field.shape)
        else:
            yield int(field)


def _named(kind: Any, hint: Any) -> Any:
    """The type of a plain tuple, or of words, as the named one of an annotation."""
    if not hasattr(hint, "_fields"):
        return kind
    if isinstance(kind, types.Array):
        return _held[hint]
    hints = get_type_hints(hint)
    fields = [_named(field, hints[name]) for field, name in zip(kind, hint._fields, strict=True)]
    return types.BaseTuple.from_types(fields, hint)


def _borrowed(context: Any, builder: Any, kind: Any, given: Any, value: Any) -> Any:
    """The value as `kind`: tuples by other names, words as the tuple that they hold, arrays without their owners."""
    if isinstance(given, types.Array):
        array = context.make_array(given)(context, builder, value)
        if isinstance(kind, types.BaseTuple):
            return _from_words(context, builder, kind, (array.data, iter(range(2**16))))
        for owner in ("meminfo", "parent"):
            setattr(array, owner, cgutils.get_null_value(getattr(array, owner).type))
        return array._getvalue()
    if isinstance(given, types.BaseTuple):
        fields = [
            _borrowed(context, builder, k, g, builder.extract_value(value, i))
            for i, (k, g) in enumerate(zip(kind, given, strict=True))
        ]
        return context.make_tuple(builder, kind, fields)
    return value


def _from_words(context: Any, builder: Any, kind: Any, words: tuple[Any, Iterator[int]]) -> Any:
    """A value of `kind`, read from where the words are, the first of the indices on."""
    if isinstance(kind, types.BaseTuple):
        return context.make_tuple(builder, kind, [_from_words(context, builder, k, words) for k in kind])
    data, indices = words

    def word() -> Any:
        return builder.load(cgutils.gep_inbounds(builder, data, next(indices)))

    if not isinstance(kind, types.Array):
        return context.cast(builder, word(), types.int64, kind)
    array = context.make_array(kind)(context, builder)
    address, shape = builder.inttoptr(word(), array.data.type), [word() for _ in range(kind.ndim)]
    itemsize = context.get_constant(types.intp, context.get_abi_sizeof(context.get_data_type(kind.dtype)))
    strides = [itemsize]
    for length in shape[:0:-1]:
        strides.insert(0, builder.mul(strides[0], length))
    populate_array(array, data=address, shape=shape, strides=strides, itemsize=itemsize, meminfo=None)
    return array._getvalue()


def _define_worker(context: Any, module: ir.Module, implementation: Any, body: Any, layout: ir.Type) -> ir.Function:
    """A function (index, frame) that takes the arguments out of the frame and calls the body."""
    convention = context.call_conv
    function = ir.Function(module, convention.get_function_type(types.none, _WORKER), f"mla_numba_run_{body.__name__}")
    function.linkage = "internal"
    convention.decorate_function(function, ["index", "frame"], _WORKER)
    builder = ir.IRBuilder(function.append_basic_block("entry"))
    index, frame = convention.get_arguments(function)
    frame = builder.bitcast(frame, layout.as_pointer())
    fields = [builder.load(cgutils.gep_inbounds(builder, frame, 0, i)) for i in range(len(layout.elements))]
    implementation(builder, (index, *fields))
    convention.return_value(builder, context.get_dummy_value())
    return function


def _call(context: Any, builder: Any, address: Any, kinds: Any, args: Any) -> Any:
    """Calls the function of these arguments at an address."""
    convention = context.call_conv
    fnty = convention.get_function_type(types.none, kinds)
    status, _ = convention.call_function(builder, builder.inttoptr(address, fnty.as_pointer()), types.none, kinds, args)
    with cgutils.if_unlikely(builder, status.is_error):
        convention.return_status_propagate(builder, status)
    return context.get_dummy_value()


def call_worker(worker: int, frame: int, index: int) -> None:
    """Runs the body at address `worker` on a frame, for one index."""
    raise NotImplementedError  # only compiled code has addresses


@intrinsic
def _call_worker(_typingctx: Any, worker: Any, frame: Any, index: Any) -> Any:
    def codegen(context: Any, builder: Any, _sig: Any, args: Any) -> Any:
        frame_at = builder.inttoptr(args[1], context.get_value_type(types.voidptr))
        return _call(context, builder, args[0], _WORKER, (args[2], frame_at))

    return types.none(types.int64, types.int64, types.int64), codegen


@overload_callee(call_worker)
def _call_worker_overload(worker: Any, frame: Any, index: Any) -> Any:
    def call(worker: Any, frame: Any, index: Any) -> None:
        _call_worker(worker, frame, index)

    return call


def call_region(region: int, n_threads: int, n: int, worker: int, frame: int) -> None:
    """Runs the parallel region at an address: a body's worker for each index below n, on so many threads."""
    raise NotImplementedError  # only compiled code has addresses


@intrinsic
def _call_region(_typingctx: Any, region: Any, n_threads: Any, n: Any, worker: Any, frame: Any) -> Any:
    def codegen(context: Any, builder: Any, _sig: Any, args: Any) -> Any:
        return _call(context, builder, args[0], _REGION, args[1:])

    return types.none(*(types.int64,) * 5), codegen


@overload_callee(call_region)
def _call_region_overload(region: Any, n_threads: Any, n: Any, worker: Any, frame: Any) -> Any:
    def call(region: Any, n_threads: Any, n: Any, worker: Any, frame: Any) -> None:
        _call_region(region, n_threads, n, worker, frame)

    return call
