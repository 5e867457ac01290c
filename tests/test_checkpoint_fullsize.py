"""One layer at DeepSeek-V3.2's dimensions, from an FP8 checkpoint to a prolog on a mapped file."""

import json

import pytest
from helpers import ROOT, run_python

MB = 1e6


@pytest.mark.fullsize
def test_a_layer_is_read_packed_saved_loaded_and_exact():
    report = json.loads(run_python(str(ROOT / "bench" / "pack_checkpoint.py"), "--tokens", "3"))
    assert report["check"]["mismatches"] == []
    w_dq_and_w_dkv_kr, w_uq_qr, w_uk = 2 * 7168 * (1536 + 576), 1536 * 128 * 192, 2 * 128 * 128 * 512
    assert report["file_mb"]["layer.mla"] == pytest.approx((w_dq_and_w_dkv_kr + w_uq_qr + w_uk) / MB, rel=0.02)
    # The file is mapped, not read; what is not the import's is what is imported later, and room for a call.
    assert report["load"]["peak_mb_after_loading"] - report["import"]["peak_mb"] < 20
    # The bf16 weights and the FP8 ones mapped, which is 0.25 GB, and never a second copy in float32 beside them.
    assert report["pack"]["peak_mb_after_reading"] - report["import"]["peak_mb"] < 400
