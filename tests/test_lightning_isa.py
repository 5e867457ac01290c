"""The lightning index on every instruction set that this machine has, without access outside an array."""

import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from helpers import SCRIPTS, run_python

from mla_numba.kernels import CHOICE, ISA, ISAS

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the pages are protected through Linux' mprotect")
SCRIPT = str(SCRIPTS / "lightning_script.py")
RUNS = {isa: (isa, "compiled", {"MLA_NUMBA_ISA": isa}) for isa in ISAS}
RUNS |= {
    f"python {isa}": (isa, "plain Python", {"NUMBA_DISABLE_JIT": "1", "MLA_NUMBA_ISA": isa})
    for isa in {ISA.name: 0, "avx2": 0, "portable": 0}
}


@pytest.fixture(scope="module")
def runs():
    """Two at a time: most of their time they compile, on one core each."""
    with ThreadPoolExecutor(2) as pool:
        yield {
            name: pool.submit(run_python, "-W", "error", SCRIPT, isa, scope, **environment)
            for name, (isa, scope, environment) in RUNS.items()
            if isa in (ISA.name, *CHOICE.others)
        }


@pytest.mark.parametrize("name", RUNS)
def test_every_instruction_set_gives_the_oracles_list(runs, name):
    if name not in runs:
        pytest.skip(f"this CPU has no {RUNS[name][0]}, or Numba's settings do without it")
    runs[name].result()
