"""A product's plan as the cells of a table."""

from tiling.gemm import GemmPlan

__all__ = ["GEMM_COLUMNS", "gemm_cells"]

GEMM_COLUMNS = ("product", "type", "m", "k", "n", "mc", "kc", "nc", "walk", "tasks", "MB", "Gop")


def gemm_cells(gemm: GemmPlan) -> tuple[str, ...]:
    """The cells of ``GEMM_COLUMNS``: sizes of the product and of its blocks, and what is read and computed."""
    heads = "" if gemm.batch == 1 else f" x {gemm.batch}"
    sizes = (gemm.m, gemm.k, gemm.n, gemm.mc, gemm.kc, gemm.nc)
    return (
        gemm.stage + heads,
        gemm.dtype,
        *map(str, sizes),
        f"{gemm.walk} of {gemm.n_panels}",
        str(gemm.n_tasks),
        f"{gemm.weight_bytes / 1e6:.2f}",
        f"{gemm.ops / 1e9:.2f}",
    )
