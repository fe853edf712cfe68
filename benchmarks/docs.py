"""Puts results on disk into the marked blocks of the README and of docs/performance.md. Measures nothing."""

from __future__ import annotations

from pathlib import Path

from bertxfer_fast.errors import InputError

from . import gpu_report
from .report import markdown, readme_markdown, replace_block
from .results import Results

#: How the names of a GPU's plots begin.
GPU_PLOTS = "gpu-"


def write_docs(root: Path, output: Path | None = None) -> None:
    """Rewrite the blocks of `docs/performance.md` and `README.md`; a GPU's are empty while no GPU was measured.

    Args:
        root: the checkout.
        output: the results file, of a CPU or of a GPU, whose blocks alone are rewritten; by default all in
            `benchmarks/results/`, of which the README shows the CPU with the most threads and the GPU with the most
            records.

    Raises:
        InputError: no results, results of a quick run, or a page without its markers.
    """
    files = [output] if output is not None else sorted((root / "benchmarks" / "results").glob("*.json"))
    if not files:
        raise InputError("bench: no results in benchmarks/results/; measure first")
    loaded = [Results.read(path) for path in files]
    for path, results in zip(files, loaded, strict=True):
        if results.quick:
            raise InputError(f"{path.name}: numbers of a quick run mean nothing; measure without --quick")
    page, readme = root / "docs" / "performance.md", root / "README.md"
    links = sorted(f"plots/{path.name}" for path in (root / "docs" / "plots").glob("*.svg"))
    of_gpu = [link for link in links if link.startswith(f"plots/{GPU_PLOTS}")]
    links = [link for link in links if link not in of_gpu]
    cpus = sorted((x for x in loaded if not x.of_gpu), key=_prominence, reverse=True)
    gpus = sorted((x for x in loaded if x.of_gpu), key=lambda results: -len(results.entries))
    # Plots are drawn of one run; they stand under the first section.
    if cpus:
        sections = [markdown(results, links if not i else ()) for i, results in enumerate(cpus)]
        replace_block(page, "\n\n".join(sections))
        replace_block(readme, readme_markdown(cpus[0]))
    if gpus or output is None:
        sections = [gpu_report.markdown(x, of_gpu if not i else ()) for i, x in enumerate(gpus)]
        if sections:
            sections.insert(0, "## Results on a GPU")
        replace_block(page, "\n\n".join(sections), gpu_report.MARKS)
        replace_block(readme, gpu_report.readme_markdown(gpus[0]) if gpus else "", gpu_report.MARKS)


def _prominence(results: Results) -> tuple[int, bool]:
    return results.machine["threads"], not results.machine["allocator"]
