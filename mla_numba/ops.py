"""The reference operator's single operations by name, on NumPy arrays.

They are the oracle's own: exact by definition, and fast enough at the sizes at which one asks for a single operation.
The fused kernels equal them bit for bit.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from ._checks import Array
from .reference import (
    dequant,
    dequant_asymmetric,
    k_nope_quant,
    quant,
    rms_norm,
    rope_3d_v2,
    rope_v2,
    rotate_half,
    scalar_div,
)

__all__ = [
    "MlaQuantInputs",
    "dequant",
    "dequant_asymmetric",
    "k_nope_quant",
    "quant",
    "rms_norm",
    "rope_3d_v2",
    "rope_v2",
    "rotate_half",
    "scalar_div",
]

_NEVER_READ = ("dequant_scale_x", "quant_scale_ckv", "quant_scale_ckr")


@dataclass(slots=True, eq=False)
class MlaQuantInputs:
    """The scales of `pre_compute_2d`; which are given decides the mode.

    | field                    | shape                    | switches on                                     |
    |--------------------------|--------------------------|-------------------------------------------------|
    | dequant_scale_w_dq       | (Rq,), (1, Rq), (Rq, 1)  | quant_a, together with dequant_scale_w_dkv_kr   |
    | dequant_scale_w_dkv_kr   | (C+R,), ...              | quant_a, together with dequant_scale_w_dq       |
    | dequant_scale_w_uq_qr    | (N*(D+R),), ...          | quant_b                                         |
    | smooth_scales_cq         | (1, Rq), ...             | smooth quantisation, in quant_b                 |

    float32 each. dequant_scale_x, quant_scale_ckv and quant_scale_ckr exist in the reference operator, which reads them
    nowhere: giving one is a `ValueError` in `pre_compute_2d`, not a silent nothing.
    """

    dequant_scale_x: Array | None = None
    dequant_scale_w_dq: Array | None = None
    dequant_scale_w_uq_qr: Array | None = None
    dequant_scale_w_dkv_kr: Array | None = None
    quant_scale_ckv: Array | None = None
    quant_scale_ckr: Array | None = None
    smooth_scales_cq: Array | None = None

    def reject_unread(self) -> None:
        """Raises `ValueError` if a scale is given that no mode reads."""
        for field in fields(self):
            if field.name in _NEVER_READ and getattr(self, field.name) is not None:
                raise ValueError(f"quant_inputs.{field.name}: expected None (no mode reads it), got an array")
