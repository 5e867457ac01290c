import subprocess
import sys

import tiling

PROBE = """
import sys
before = set(sys.modules)
import tiling
new = {name.partition(".")[0] for name in set(sys.modules) - before}
print(sorted(new - set(sys.stdlib_module_names)))
"""


def test_imports_the_standard_library_only():
    root = tiling.__path__[0].rpartition("/")[0]
    probe = f"import sys\nsys.path.insert(0, {root!r})\n{PROBE}"
    done = subprocess.run([sys.executable, "-S", "-c", probe], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['tiling']"


def test_public_names():
    assert tiling.__all__ == sorted(tiling.__all__, key=lambda name: (not name.isupper(), name.islower(), name))
    assert all(hasattr(tiling, name) for name in tiling.__all__)
