"""Made-up machines, and plans for them."""

from tiling import Cluster, Costs, LinkRate, Machine, MicroTile, PlanDims, plan_prolog

MICRO = {"bf16": MicroTile(12, 32, 2, 4), "int8": MicroTile(8, 48, 4, 1)}
FULL = PlanDims(7168, 128, 1536, 512, 128, 64)
SMALL_CACHES = Machine("small", "x", "avx2", 32 * 1024, 256 * 1024, 0, 4, 4)
BIG_CACHES = Machine("big", "x", "avx512vnni", 48 * 1024, 2 * 1024**2, 2**25, 64, 32)
# Made up, so that plans stay pinned whenever the package's own are fitted anew.
COSTS = Costs(
    memory_bytes_s=6e10, core_bytes_s=4e10, l3_bytes_s=4e10, l2_bytes_s=1e11, c_bytes_s=2e11, bf16_flops_s=5e11,
    int8_ops_s=1e12, step_rows=2.0, call_s=5e-9, walk_s=5e-8, jump_s=1e-7, element_s=3e-10, row_s=4e-6, task_s=1e-7,
    launch_s=1e-5, overlap_loss=0.3,
)  # fmt: skip
CLUSTER = Cluster(
    "made up", "x", "avx2", n_sockets=2, n_cores=8, l1d_bytes=32 << 10, l2_bytes=1 << 20, l3_bytes=32 << 20,
    memory_bytes_s=1e11, core_bytes_s=2e10, bf16_flops_s=1e11, int8_ops_s=4e11, socket_link=LinkRate(1e-6, 1e10),
    node_link=LinkRate(5e-6, 4e9), launch_s=1e-5,
)  # fmt: skip
ZEN5 = "fpu sse2 fma avx2 avx512f avx512dq avx512bw avx512vl avx512_vnni"


def plan_of(t, config=None, machine=BIG_CACHES, **kwargs):
    return plan_prolog(FULL, t, config, machine, **{"micro": MICRO, "costs": COSTS} | kwargs)


def write(root, files):
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")


def fake_linux(root, flags=ZEN5, n_cores=4, threads_per_core=2):
    write(root, {"proc/cpuinfo": f"processor\t: 0\nmodel name\t: Fake 9\nflags\t\t: {flags}\n\nprocessor\t: 1"})
    cpus = "sys/devices/system/cpu"
    write(root, {f"{cpus}/cpufreq/boost": "1"})
    for cpu in range(n_cores * threads_per_core):
        folder = f"{cpus}/cpu{cpu}"
        topology = {"core_id": cpu % n_cores % 2, "physical_package_id": cpu % n_cores // 2}
        write(root, {f"{folder}/topology/{name}": value for name, value in topology.items()})
        caches = [(1, "Data", "48K"), (1, "Instruction", "32K"), (2, "Unified", "2048K"), (3, "Unified", "36M")]
        for i, (level, kind, size) in enumerate(caches):
            values = {"level": level, "type": kind, "size": size}
            write(root, {f"{folder}/cache/index{i}/{name}": value for name, value in values.items()})
