"""Records of 656 bytes, codes, scales and rotated key of a slot side by side, as the kernels read a cache: in place."""

from __future__ import annotations

import numpy as np

from ..base.checks import INT8, Array, check_choice
from ..base.modes import RecordOrder
from ..cache_blocks import check_blocks
from ..kernels.sweeps.arguments import Caches, Slots
from ..layouts import RECORD_BYTES, RECORD_ORDERS, record_spans

__all__ = ["check_records", "record_views"]

_UINT8 = np.dtype(np.uint8)
_FIELDS = {"codes": np.int8, "scales": np.float32, "rope": np.uint16}


def check_records(records: object, order: object) -> RecordOrder:
    """The order of the fields. Raises unless these are aligned records (blocks, block_size, 1, 656) of one of two."""
    check_blocks("cache", records, "PA_BSND", None, _UINT8, INT8)
    assert isinstance(records, np.ndarray)
    if records.shape[3] != RECORD_BYTES:
        raise ValueError(f"cache: expected records of {RECORD_BYTES} bytes, got {records.shape[3]}")
    if records.ctypes.data % 4 or records.strides[0] % 4:
        at = f"address 0x{records.ctypes.data:x} and strides {records.strides}"
        raise ValueError(f"cache: expected records aligned to their scales' 4 bytes, got {at}")
    if order is None:
        raise ValueError(f"record_order: expected {' or '.join(RECORD_ORDERS)} with records, got None")
    chosen: RecordOrder = check_choice("record_order", order, RECORD_ORDERS)
    return chosen


def record_views(records: Array, order: RecordOrder) -> Caches:
    """The fields of checked records: each a flat array from the field of slot 0 on, over all records."""
    blocks, block_size, _, _ = records.shape
    block_bytes = records.strides[0] if blocks > 1 else block_size * RECORD_BYTES
    n_bytes = (blocks - 1) * block_bytes + block_size * RECORD_BYTES
    flat = np.lib.stride_tricks.as_strided(records.view(np.uint8), (n_bytes,), (1,))
    slots = {}
    for name, (start, stop) in record_spans(order).items():
        dtype = np.dtype(_FIELDS[name])
        each, d = dtype.itemsize, (stop - start) // dtype.itemsize
        layout = np.array((block_size, block_bytes // each, d, 0, RECORD_BYTES // each), np.int64)
        slots[name] = Slots(flat[start : n_bytes - (n_bytes - start) % each].view(dtype), layout)
    return Caches(slots["codes"], slots["rope"], slots["scales"])
