"""What a process may use of made-up machines: cores, quotas and NUMA nodes, and the threads that follow."""

import json
import os
import sys
from dataclasses import replace

import pytest
from helpers import run_python
from helpers.cli import invoke
from helpers.machines import write

from mla_numba import MlaDims, MlaProlog, MlaWeights
from mla_numba.base import threads
from mla_numba.base.checks import check_threads
from mla_numba.base.threads import usual_threads, why_usual_threads
from mla_numba.call.planning import this_machine
from mla_numba.cli import info
from mla_numba.kernels import max_threads
from tiling import ceil_div
from tiling.machine import detect_linux, fallback_machine
from tiling.system import usable
from tiling.system.cgroup import cpu_quota
from tiling.system.cores import Core
from tiling.system.text import cpu_list
from tiling.system.usable import Usable, any_usable, linux_usable, macos_usable

CPUS = "sys/devices/system/cpu"
KINDS = "sys/devices/cpu_{}/cpus"
NODES = "sys/devices/system/node"


def machine(root, siblings, files=()):
    """A machine whose cores are lists of CPUs."""
    for cpus in siblings:
        for cpu in cpus:
            write(root, {f"{CPUS}/cpu{cpu}/topology/core_cpus_list": ",".join(map(str, cpus))})
    write(root, dict(files))
    return root


def all_of(siblings):
    return frozenset(cpu for cpus in siblings for cpu in cpus)


PAIRS = [(0, 4), (1, 5), (2, 6), (3, 7)]  # hyperthreads far apart, as Intel and AMD number them
NEIGHBOURS = [(0, 1), (2, 3), (4, 5), (6, 7)]  # and side by side, as virtual machines and POWER do
FOURS = [(0, 1, 2, 3), (4, 5, 6, 7)]
SINGLES = [(0,), (1,), (2,), (3,)]


@pytest.mark.parametrize(
    "siblings", [PAIRS, NEIGHBOURS, FOURS, SINGLES], ids=["pairs", "neighbours", "fours", "singles"]
)
def test_hyperthreads_of_a_core_are_one(tmp_path, siblings):
    found = linux_usable(machine(tmp_path, siblings), all_of(siblings))
    assert [core.cpus for core in found.cores] == siblings
    assert found.n_threads == len(siblings)
    one_each = linux_usable(tmp_path, frozenset(cpus[-1] for cpus in siblings))
    assert one_each.n_threads == len(siblings)
    assert linux_usable(tmp_path, frozenset(siblings[1])).n_threads == 1


@pytest.mark.parametrize("name", ["core_cpus_list", "thread_siblings_list"])
def test_either_name_of_the_siblings_will_do(tmp_path, name):
    write(tmp_path, {f"{CPUS}/cpu{cpu}/topology/{name}": "0-1" for cpu in (0, 1)})
    assert linux_usable(tmp_path, frozenset({0, 1})).cores == (Core((0, 1)),)


def test_cores_of_dies_and_clusters_that_have_equal_numbers_are_apart(tmp_path):
    for cpu in range(8):
        ids = {"physical_package_id": cpu // 4, "die_id": cpu // 2 % 2, "core_id": cpu % 2}
        write(tmp_path, {f"{CPUS}/cpu{cpu}/topology/{name}": value for name, value in ids.items()})
    assert linux_usable(tmp_path, frozenset(range(8))).n_threads == 8


def test_cpus_that_are_offline_or_not_described(tmp_path):
    machine(tmp_path, [(0, 2)], {f"{CPUS}/cpu9/online": "0"})
    found = linux_usable(tmp_path, frozenset({0, 5}))
    assert [core.cpus for core in found.cores] == [(0, 2), (5,)]
    assert found.n_threads == 2


CLOCK = "cpufreq/cpuinfo_max_freq"
EIGHT = [(cpu,) for cpu in range(8)]
HYBRIDS = {
    "intel": (
        [(0, 1), (2, 3), (4,), (5,), (6,), (7,)],
        {"sys/devices/cpu_core/cpus": "0-3", "sys/devices/cpu_atom/cpus": "4-7"},
        (2, 4),
    ),
    "intel of three kinds": (
        EIGHT,
        {KINDS.format("core"): "0-3", KINDS.format("atom"): "4-5", KINDS.format("lowpower"): "6,7"},
        (4, 4),
    ),
    "arm": (EIGHT, {f"{CPUS}/cpu{cpu}/cpu_capacity": 382 if cpu < 4 else 1024 for cpu in range(8)}, (4, 4)),
    "arm of three kinds": (
        EIGHT,
        {f"{CPUS}/cpu{cpu}/cpu_capacity": [250, 250, 250, 250, 870, 870, 870, 1024][cpu] for cpu in range(8)},
        (4, 4),
    ),
    "clocks": (
        EIGHT, {f"{CPUS}/cpu{cpu}/{CLOCK}": 3300000 if cpu > 1 else 5100000 for cpu in range(8)}, (2, 6)
    ),
    "some cores preferred": (
        EIGHT, {f"{CPUS}/cpu{cpu}/{CLOCK}": 5700000 if cpu < 2 else 5200000 for cpu in range(8)}, (8, 0)
    ),
    "not said of all": (EIGHT, {f"{CPUS}/cpu0/cpu_capacity": 1024}, (8, 0)),
    "nonsense": (EIGHT, {f"{CPUS}/cpu{cpu}/cpu_capacity": "x" for cpu in range(8)}, (8, 0)),
}  # fmt: skip


@pytest.mark.parametrize("name", HYBRIDS)
def test_slower_cores_are_told_apart_and_have_a_thread_too(tmp_path, name):
    siblings, files, (fast, slow) = HYBRIDS[name]
    found = linux_usable(machine(tmp_path, siblings, files), all_of(siblings))
    assert (found.n_usable("performance"), found.n_usable("efficiency")) == (fast, slow)
    assert found.n_threads == fast + slow
    assert ("of either kind: threads draw tasks" in found.reason) == (slow > 0)
    assert (f"({fast} performance, {slow} efficiency)" in found.lines()["cores"]) == (slow > 0)
    only_fast = linux_usable(
        tmp_path, frozenset(cpu for core in found.cores if core.kind == "performance" for cpu in core.cpus)
    )
    assert (only_fast.n_threads, "either kind" in only_fast.reason) == (fast, False)


def test_blocks_have_to_fit_the_smaller_caches_and_a_core_s_share(tmp_path):
    siblings = [(0, 1), (2, 3), (4,), (5,), (6,), (7,)]
    kinds = {"sys/devices/cpu_core/cpus": "0-3", "sys/devices/cpu_atom/cpus": "4-7"}
    machine(tmp_path, siblings, kinds)
    sizes = {0: ("48K", "0-1", "2048K", "0-1"), 4: ("32K", "4", "4M", "4-7")}  # efficiency cores share an L2 by four
    for cpu, (l1, at_l1, l2, at_l2) in sizes.items():
        for index, level, kind, size, shared in (
            (0, 1, "Data", l1, at_l1), (1, 1, "Instruction", "64K", at_l1), (2, 2, "Unified", l2, at_l2),
            (3, 3, "Unified", "30M", "0-7"),
        ):  # fmt: skip
            values = {"level": level, "type": kind, "size": size, "shared_cpu_list": shared}
            folder = f"{CPUS}/cpu{cpu}/cache/index{index}"
            write(tmp_path, {f"{folder}/{name}": value for name, value in values.items()})
    found = detect_linux(tmp_path, all_of(siblings))
    assert (found.l1d_bytes, found.l2_bytes, found.l3_bytes) == (32 << 10, 1 << 20, 30 << 20)
    fast = detect_linux(tmp_path, {0, 2})
    assert (fast.l1d_bytes, fast.l2_bytes, fast.n_usable_cores, fast.n_physical_cores) == (48 << 10, 2 << 20, 2, 6)


V2_MOUNT = "29 23 0:26 {top} /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate"
V1_MOUNT = "33 25 0:28 {top} /sys/fs/cgroup/cpu,cpuacct rw shared:9 - cgroup cgroup rw,cpu,cpuacct"
QUOTAS = {
    "none": ({"proc/self/cgroup": "0::/"}, None),
    "no limit": ({"proc/self/cgroup": "0::/a", "sys/fs/cgroup/a/cpu.max": "max 100000"}, None),
    "own group": ({"proc/self/cgroup": "0::/a", "sys/fs/cgroup/a/cpu.max": "150000 50000"}, (3, "/a")),
    "the group above": (
        {"proc/self/cgroup": "0::/a/b", "sys/fs/cgroup/a/cpu.max": "20000 10000", "sys/fs/cgroup/a/b/cpu.max": "max 1"},
        (2, "/a"),
    ),
    "the tightest of nested ones": (
        {
            "proc/self/cgroup": "0::/a/b/c",
            "sys/fs/cgroup/a/cpu.max": "300000 100000",
            "sys/fs/cgroup/a/b/cpu.max": "250000 100000",
            "sys/fs/cgroup/a/b/c/cpu.max": "800000 100000",
        },
        (2.5, "/a/b"),
    ),
    "a container that sees its own top only": (
        {
            "proc/self/cgroup": "0::/docker/0a1b",
            "proc/self/mountinfo": V2_MOUNT.format(top="/docker/0a1b"),
            "sys/fs/cgroup/cpu.max": "150000 100000",
        },
        (1.5, "/"),
    ),
    "a group below that top": (
        {
            "proc/self/cgroup": "0::/docker/0a1b/job",
            "proc/self/mountinfo": V2_MOUNT.format(top="/docker/0a1b"),
            "sys/fs/cgroup/job/cpu.max": "120000 100000",
        },
        (1.2, "/job"),
    ),
    "a group that is not to be seen": (
        {"proc/self/cgroup": "0::/../other", "sys/fs/cgroup/cpu.max": "200000 100000", "sys/other/cpu.max": "1 100000"},
        (2, "/"),
    ),
    "version 1, mounted elsewhere": (
        {
            "proc/self/cgroup": "4:cpu,cpuacct:/job\n3:cpuset:/job",
            "proc/self/mountinfo": V1_MOUNT.format(top="/"),
            "sys/fs/cgroup/cpu,cpuacct/job/cpu.cfs_quota_us": "350000",
            "sys/fs/cgroup/cpu,cpuacct/job/cpu.cfs_period_us": "100000",
        },
        (3.5, "/job"),
    ),
    "version 1, no limit": (
        {
            "proc/self/cgroup": "4:cpu:/",
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1",
            "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
        },
        None,
    ),
    "both versions": (
        {
            "proc/self/cgroup": "2:cpu:/job\n0::/job",
            "proc/self/mountinfo": f"x\n{V1_MOUNT.format(top='/')}\n"
            "30 23 0:27 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw",
            "sys/fs/cgroup/cpu,cpuacct/job/cpu.cfs_quota_us": "200000",
            "sys/fs/cgroup/cpu,cpuacct/job/cpu.cfs_period_us": "100000",
        },
        (2, "/job"),
    ),
    "nonsense": (
        {"proc/self/cgroup": "0::/\n::\nx", "sys/fs/cgroup/cpu.max": "1 0", "proc/self/mountinfo": "- - -"}, None
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", QUOTAS)
def test_quotas(tmp_path, name):
    files, want = QUOTAS[name]
    write(tmp_path, files)
    found = cpu_quota(tmp_path)
    assert (found and (found.cpus, found.group)) == want


@pytest.mark.parametrize(("period", "n_threads"), [(25000, 4), (40000, 2), (70000, 1), (1000000, 1), (1000, 4)])
def test_a_quota_is_rounded_down_and_never_below_one(tmp_path, period, n_threads):
    machine(tmp_path, PAIRS, {"proc/self/cgroup": "0::/job", "sys/fs/cgroup/job/cpu.max": f"100000 {period}"})
    found = linux_usable(tmp_path, all_of(PAIRS))
    assert found.n_threads == n_threads
    said = f"the quota of {100000 / period:g} CPUs (cgroup /job), rounded down: a thread that is put off holds up all"
    assert found.reason == (said if n_threads < 4 else "one a core, not a hyperthread")


def test_numa_nodes(tmp_path):
    meminfo = "Node {0} MemTotal:       {1} kB\nNode {0} MemFree: 12 kB"
    files = {f"{NODES}/node{n}/cpulist": cpus for n, cpus in ((0, "0-1,4-5"), (1, "2-3,6-7"), (2, ""), (3, ""))}
    files |= {
        f"{NODES}/node{n}/meminfo": meminfo.format(n, kib) for n, kib in ((0, 2000000), (1, 1000000), (2, 500000))
    }
    machine(tmp_path, PAIRS, files)
    found = linux_usable(tmp_path, frozenset({0, 4, 1, 2}))
    assert [(node.number, node.cpus, node.memory_bytes) for node in found.nodes] == [
        (0, (0, 1, 4, 5), 2048 * 10**6), (1, (2, 3, 6, 7), 1024 * 10**6), (2, (), 512 * 10**6)
    ]  # fmt: skip
    assert found.lines()["NUMA nodes"] == (
        "node 0: 2 usable cores, 2.0 GB; node 1: 1 usable cores, 1.0 GB; node 2: 0 usable cores, 0.5 GB"
    )
    assert found.lines()["cores"] == "3 of 4, up to 2 CPUs each; affinity allows 4 of 8 CPUs"
    assert found.node_cores == detect_linux(tmp_path, {0, 4, 1, 2}).node_cores == (2, 1)
    assert linux_usable(tmp_path, frozenset({1, 4})).node_cores == ()  # one node has all of them


def test_nodes_come_in_the_order_of_their_cpus(tmp_path):
    files = {f"{NODES}/node{n}/cpulist": cpus for n, cpus in ((0, "1-3"), (1, "0"))}
    machine(tmp_path, SINGLES, files)
    assert linux_usable(tmp_path, all_of(SINGLES)).node_cores == (1, 3)


def test_a_system_that_says_nothing(tmp_path):
    found = linux_usable(tmp_path, frozenset({0, 3}))
    assert (found.n_threads, found.reason) == (2, "one a core")
    assert found.lines() == {"cores": "2 of 2", "CPU quota": "none", "NUMA nodes": "not known"}
    found = any_usable(6)
    assert (found.n_threads, found.reason) == (6, "one a CPU")
    assert "does not say which are hyperthreads" in found.lines()["cores"]


def test_macos():
    apple = {"hw.physicalcpu": "10", "hw.logicalcpu": "10", "hw.perflevel0.physicalcpu": "8"}
    found = macos_usable(lambda key: apple.get(key, ""))
    assert (found.n_threads, found.n_usable("performance"), found.n_usable("efficiency")) == (10, 8, 2)
    intel = {"hw.physicalcpu": "4", "hw.logicalcpu": "8"}
    found = macos_usable(lambda key: intel.get(key, ""))
    assert [core.cpus for core in found.cores] == [(0, 4), (1, 5), (2, 6), (3, 7)]
    assert (found.n_threads, found.reason) == (4, "one a core, not a hyperthread")
    assert macos_usable(lambda key: "").n_threads == 1


@pytest.mark.parametrize("platform", ["linux", "darwin", "win32"])
def test_every_system_has_a_thread(monkeypatch, platform):
    monkeypatch.setattr(sys, "platform", platform)
    if platform == "linux" and not hasattr(os, "sched_getaffinity"):
        pytest.skip("this system has no affinity")
    assert Usable.detect.__wrapped__().n_threads >= 1


@pytest.mark.parametrize(
    ("text", "cpus"),
    [
        ("0", {0}), ("0-2,5", {0, 1, 2, 5}), (" 1 , 3-3", {1, 3}), ("", set()), ("x,4,-1,6-5,0-99999999", {4}),
        ("²", set()),
    ],
)  # fmt: skip
def test_lists_of_cpus(text, cpus):
    assert cpu_list(text) == cpus


# what follows for calls


@pytest.fixture
def two_a_core(monkeypatch, tmp_path):
    """Cores of two CPUs each, of which Numba counts all; how many cores there are."""
    n_cores = ceil_div(max_threads(), 2)
    machine(tmp_path, [range(core * 2, min(core * 2 + 2, max_threads())) for core in range(n_cores)])
    found = linux_usable(tmp_path, frozenset(range(max_threads())))
    monkeypatch.setattr(usable.Usable, "detect", staticmethod(lambda: found))
    monkeypatch.setattr(threads, "_is_set", lambda: False)
    return n_cores


def test_a_call_has_a_thread_a_core(two_a_core):
    assert usual_threads(max_threads()) == check_threads("n_threads", None, max_threads()) == two_a_core
    weights = MlaWeights.random(MlaDims(64, 2, 32, 32, 16, 16))
    assert MlaProlog(weights).n_threads == two_a_core
    assert MlaProlog(weights, n_threads=max_threads()).n_threads == max_threads()
    said = f"{Usable.detect().reason}; NUMBA_NUM_THREADS sets another number"
    assert why_usual_threads(max_threads()) == said
    assert f"threads          {two_a_core}: {said}\n" in invoke("info").output
    facts = json.loads(invoke("info", "--json").output)
    assert (facts["n_threads"], facts["n_threads_reason"]) == (two_a_core, said)
    assert len(facts["usable"]["cores"]) == two_a_core
    assert json.loads(invoke("plan", "--tokens", "8", "--json").output)["n_threads"] == two_a_core


@pytest.mark.parametrize(
    ("layer", "binding", "kept"),
    [
        ("omp", "spread", "kept there by OMP_PROC_BIND=spread"),
        ("omp", "", "threads may leave their node: only OMP_PROC_BIND=spread on the layer omp keeps them"),
        ("tbb", "spread", "threads may leave their node: only OMP_PROC_BIND=spread on the layer omp keeps them"),
    ],
)
def test_info_says_which_groups_threads_form(monkeypatch, layer, binding, kept):
    many = replace(this_machine(), n_physical_cores=64, n_usable_cores=64, node_cores=(24, 40))
    monkeypatch.setattr(info, "this_machine", lambda: many)
    monkeypatch.setattr(info, "usual_threads", lambda available: 32)
    monkeypatch.setattr(info, "threading_layer", lambda: layer)
    monkeypatch.setenv("OMP_PROC_BIND", binding)
    assert f"groups           2 groups of 12 and 20 threads, one a NUMA node; {kept}\n" in invoke("info").output
    assert json.loads(invoke("info", "--json").output)["groups"] == [12, 20]
    monkeypatch.setattr(info, "this_machine", this_machine)
    if not this_machine().node_cores:
        assert "\ngroups" not in invoke("info").output


def test_what_the_user_told_numba_is_taken(monkeypatch, tmp_path):
    found = linux_usable(machine(tmp_path, PAIRS), all_of(PAIRS))
    monkeypatch.setattr(usable.Usable, "detect", staticmethod(lambda: found))
    monkeypatch.setattr(threads, "_is_set", lambda: False)
    assert (usual_threads(8), why_usual_threads(8)) == (
        4, "one a core, not a hyperthread; NUMBA_NUM_THREADS sets another number"
    )  # fmt: skip
    for n in (1, 3, 6, 9):  # by Numba's file of settings
        assert (usual_threads(n), why_usual_threads(n)[:22]) == (n, "as many as Numba has; ")
    monkeypatch.setattr(threads, "_is_set", lambda: True)
    assert (usual_threads(8), why_usual_threads(8)) == (8, "NUMBA_NUM_THREADS")


@pytest.mark.parametrize("n", [1, 3])
def test_what_the_environment_sets_is_taken(n):
    weights = "mla.MlaWeights.random(mla.MlaDims(64, 2, 32, 32, 16, 16))"
    code = f"import mla_numba as mla; print(mla.MlaProlog({weights}).n_threads)"
    assert run_python("-c", code, NUMBA_NUM_THREADS=str(n)).split() == [str(n)]


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="this system has no affinity")
@pytest.mark.skipif(max_threads() < 2, reason="one core")
def test_a_main_thread_that_openmp_bound_counts_all_cores():
    code = (
        "from mla_numba.cli.info import Facts; from mla_numba.call.planning import this_machine; "
        "Facts.found(); from mla_numba.base.threads import *; from mla_numba.kernels import max_threads; "
        "print(usual_threads(max_threads()), this_machine().n_usable_cores)"
    )
    free = run_python("-c", code)
    assert run_python("-c", code, OMP_PROC_BIND="spread", OMP_PLACES="cores") == free


def test_where_python_counts_the_cpus_of_the_process(monkeypatch):
    monkeypatch.setattr(os, "process_cpu_count", lambda: 3, raising=False)
    assert usable.n_cpus() == 3
    monkeypatch.setattr(sys, "platform", "win32")
    assert Usable.detect.__wrapped__().n_threads == fallback_machine().n_usable_cores == 3
