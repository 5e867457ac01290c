import platform
import sys
from dataclasses import replace

import pytest
from helpers.machines import ZEN5, fake_linux, write

from tiling import Machine
from tiling.machine import ISA_NAMES, detect_linux, detect_macos, fallback_machine, isa_of

KIB = 1024


def test_linux(tmp_path):
    fake_linux(tmp_path)
    assert detect_linux(tmp_path, set(range(8))) == Machine(
        name="Fake 9",
        arch=platform.machine(),
        isa="avx512vnni",
        l1d_bytes=48 * KIB,
        l2_bytes=2048 * KIB,
        l3_bytes=36 * KIB**2,
        n_physical_cores=4,
        n_usable_cores=4,
    )


def test_linux_counts_hyperthreads_of_one_core_once(tmp_path):
    fake_linux(tmp_path)
    machine = detect_linux(tmp_path, {1, 5, 6})  # 1 and 5 share a core
    assert (machine.n_physical_cores, machine.n_usable_cores) == (4, 2)


@pytest.mark.parametrize(
    ("files", "n_usable"),
    [
        ({"proc/self/cgroup": "0::/a/b", "sys/fs/cgroup/cpu.max": "max 100000"}, 4),
        ({"proc/self/cgroup": "0::/a/b", "sys/fs/cgroup/a/cpu.max": "250000 100000"}, 2),
        ({"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "50000 100000"}, 1),
        ({"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "9000000 100000"}, 4),
        (
            {
                "proc/self/cgroup": "3:cpuset:/\n2:cpu,cpuacct:/job",
                "sys/fs/cgroup/cpu/job/cpu.cfs_quota_us": "300000",
                "sys/fs/cgroup/cpu/job/cpu.cfs_period_us": "100000",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
            },
            3,
        ),
    ],
)
def test_linux_respects_the_cgroup_quota(tmp_path, files, n_usable):
    fake_linux(tmp_path)
    write(tmp_path, files)
    assert detect_linux(tmp_path, set(range(8))).n_usable_cores == n_usable


def test_linux_without_any_file(tmp_path):
    machine = detect_linux(tmp_path, {0, 3})
    assert (machine.isa, machine.l1d_bytes, machine.l2_bytes, machine.l3_bytes) == ("portable", 32 * KIB, 512 * KIB, 0)
    assert (machine.n_physical_cores, machine.n_usable_cores) == (2, 2)
    assert machine.name == platform.machine()


@pytest.mark.parametrize(
    ("flags", "isa"),
    [
        (ZEN5, "avx512vnni"),
        (ZEN5 + " avx512_bf16", "avx512bf16"),
        (ZEN5.replace("avx512vl", ""), "avx2"),
        ("avx2 fma avx512f avx512bw avx512vl", "avx512"),
        ("avx2 fma avx512f avx512bw", "avx2"),
        ("avx2 fma avx_vnni", "avxvnni"),
        ("avx2 fma avx512f avx512bw avx512vl avx_vnni", "avx512"),
        ("avx2 avx_vnni", "portable"),
        ("avx2", "portable"),
        ("fp asimd evtstrm aes", "neon"),
        ("fp asimd asimddp", "neondot"),
        ("fp asimd asimddp i8mm", "neondot"),
        ("fp asimd asimddp sve i8mm bf16", "neoni8mm"),
        ("fp", "portable"),
        ("", "portable"),
    ],
)
def test_isa(flags, isa):
    assert isa_of(flags.split()) == isa


@pytest.mark.parametrize(
    ("implementer", "part", "features", "name", "isa"),
    [
        ("0x41", "0xd0c", "fp asimd asimddp", "Neoverse-N1", "neondot"),
        ("0x41", "0xfff", "fp asimd", "Arm 0xfff", "neon"),
        ("0x61", "0x032", "fp asimd asimddp i8mm bf16", f"{platform.machine()} 0x61 0x032", "neoni8mm"),
    ],
)
def test_linux_on_aarch64(tmp_path, implementer, part, features, name, isa):
    lines = {"processor": 0, "Features": features, "CPU implementer": implementer, "CPU part": part}
    write(tmp_path, {"proc/cpuinfo": "\n".join(f"{key}\t: {value}" for key, value in lines.items())})
    machine = detect_linux(tmp_path, {0})
    assert (machine.name, machine.isa) == (name, isa)


def test_macos():
    arm = {
        "machdep.cpu.brand_string": "Apple M9",
        "hw.physicalcpu": "10",
        "hw.perflevel0.physicalcpu": "8",
        "hw.perflevel0.l1dcachesize": "131072",
        "hw.l1dcachesize": "65536",
        "hw.l2cachesize": "4194304",
    }
    m = detect_macos(lambda key: arm.get(key, ""))
    assert m == Machine("Apple M9", platform.machine(), "portable", 128 * KIB, 4096 * KIB, 0, 10, 10)
    shared = {"perflevel0.l2cachesize": 2**24, "perflevel0.cpusperl2": 4, "perflevel1.l2cachesize": 2**22}
    shared |= {"perflevel1.cpusperl2": 2, "perflevel1.l1dcachesize": 2**16}
    arm |= {f"hw.{key}": str(value) for key, value in shared.items()}
    m = detect_macos(lambda key: arm.get(key, ""))  # what a core of the kind that has less may count on
    assert (m.l1d_bytes, m.l2_bytes) == (64 * KIB, 2048 * KIB)
    keys = ("neon", "arm.FEAT_DotProd", "arm.FEAT_I8MM", "arm.FEAT_BF16")
    for n, isa in enumerate(("portable", "neon", "neondot", "neondot", "neoni8mm")):
        here = arm | {f"hw.optional.{key}": str(int(i < n)) for i, key in enumerate(keys)}
        assert detect_macos(lambda key, here=here: here.get(key, "")).isa == isa
    intel = {"machdep.cpu.features": "SSE4.2 FMA", "machdep.cpu.leaf7_features": "AVX2", "hw.physicalcpu": "4"}
    m = detect_macos(lambda key: intel.get(key, ""))
    assert (m.isa, m.l1d_bytes, m.l2_bytes, m.n_usable_cores) == ("avx2", 32 * KIB, 512 * KIB, 4)


def test_fallback_and_detect():
    assert fallback_machine().isa == "portable"
    machine = Machine.detect()
    assert machine is Machine.detect()
    assert machine.l1d_bytes <= machine.l2_bytes
    if sys.platform == "linux":
        import os

        assert machine.n_usable_cores <= len(os.sched_getaffinity(0))


def test_json_and_str():
    machine = Machine("Fake 9", "x86_64", "avx2", 48 * KIB, 1024 * KIB, 0, 8, 6)
    assert Machine.from_json(machine.to_json()) == machine
    assert str(machine) == "Fake 9 (x86_64, avx2): L1d 48 KiB, L2 1024 KiB, L3 0 KiB, 6 of 8 cores"
    two = replace(machine, node_cores=[2, 4])
    assert Machine.from_json(two.to_json()) == two
    assert str(two) == f"{machine} on 2 NUMA nodes"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"isa": "sse"}, f"isa: expected one of {', '.join(ISA_NAMES)}, got 'sse'"),
        ({"l2_bytes": 0}, "l2_bytes: expected at least 1, got 0"),
        ({"n_usable_cores": 9}, "n_physical_cores: expected at least 9, got 8"),
        ({"node_cores": (0, 8)}, r"node_cores\[0\]: expected at least 1, got 0"),
        ({"node_cores": (5, 4)}, "node_cores: expected at most 8 cores together, got 9"),
    ],
)
def test_machine_refuses(change, message):
    fields = {"name": "x", "arch": "x", "isa": "avx2", "l1d_bytes": 1, "l2_bytes": 1, "l3_bytes": 0}
    with pytest.raises(ValueError, match=message):
        Machine(**fields | {"n_physical_cores": 8, "n_usable_cores": 8} | change)
