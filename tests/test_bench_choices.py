"""From a GPU's results and sweeps to the table that the package reads: backends by size, configurations of kernels."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks import choices
from benchmarks.gpu import jobs, profile, sweep, variants
from benchmarks.gpu.facts import Facts
from benchmarks.results import Record
from bertxfer_fast.ops._dispatch import backend as _backend
from bertxfer_fast.ops._dispatch import choices as _choices
from bertxfer_fast.ops._dispatch.autograd import gpu_size

from .test_bench import entry, results, save
from .test_bench_gpu import gpu_entry, gpu_results, problem

# ---- choices ------------------------------------------------------------------------------------------------


def test_choices_follow_what_was_faster_at_each_size() -> None:
    small = [
        gpu_entry(case="kl", size=100, triton=1.0, cuda=3.0),
        gpu_entry(case="mse", size=100, triton=2, cuda=1),
    ]
    large = [gpu_entry(size=10_000, triton=2.0, cuda=1.0), gpu_entry(size=40_000, triton=2.0, cuda=1.0)]
    ignored = [
        gpu_entry(size=20_000, triton=1.0, cuda=99.0, tests="1 failed"),
        gpu_entry(size=20_000, triton=1.0, cuda=99.0, dtype="float32"),
        gpu_entry("logits_kl", "", cuda=None),
    ]
    entries = [*small, *large, *ignored, gpu_entry("hidden_mse", "", dtype="float32")]
    table = choices.choose([Record.from_json(x) for x in entries])
    assert table == {
        "attention_map_loss": [(1000, "triton"), (choices.UNBOUNDED, "cuda")],
        "hidden_mse": [(choices.UNBOUNDED, "cuda")],
    }


def test_choices_are_written_as_data_and_read_again(tmp_path: Path) -> None:
    path = tmp_path / "choices.json"
    path.write_text(choices.TABLE.read_text())
    rows = [(1000, "triton"), (choices.UNBOUNDED, "cuda")]
    choices.update(path, faster_on_cuda={"hidden_mse": rows})
    choices.update(path, faster_on_cuda={"logits_kl": [(50, "cuda")]})
    read = json.loads(path.read_text())["faster_on_cuda"]
    assert [tuple(row) for row in read["hidden_mse"]] == rows and read["logits_kl"] == [[50, "cuda"]]
    row = [[999, 2, 64], {"BLOCK_M": 64}]
    choices.update(path, configurations={"a.triton": {"TABLE": [row, [[1, 2], {"x": 1}]]}})
    choices.update(path, configurations={"a.triton": {"TABLE": [[[999, 2, 64], {"BLOCK_M": 32}]]}})
    assert json.loads(path.read_text())["configurations"] == {
        "a.triton": {"TABLE": [[[999, 2, 64], {"BLOCK_M": 32}], [[1, 2], {"x": 1}]]}
    }


def test_the_first_row_that_holds_the_size_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [(1000, "triton"), (choices.UNBOUNDED, "cuda")]
    monkeypatch.setattr(_choices, "FASTER_ON_CUDA", {"hidden_mse": rows, "logits_kl": [(50, "cuda")]})
    faster = _choices.faster_on_cuda
    assert (faster("hidden_mse", 1000), faster("hidden_mse", 1001)) == ("triton", "cuda")
    assert faster("logits_kl", 51) is faster("relation_kl", 1) is faster("hidden_mse", None) is None


def swept(
    ms: float, block: int, *, standing: bool = False, bounds: tuple[int, ...] = (999, 2)
) -> dict[str, Any]:
    row = {"module": "m", "table": "T", "bounds": list(bounds), "meta": {"BLOCK": block}}
    return {"kind": "sweep", "ms": ms, "standing": standing, **row}


def test_a_configuration_is_chosen_if_it_is_clearly_faster_than_the_one_that_stands(tmp_path: Path) -> None:
    facts = [swept(1.0, 64, standing=True), swept(0.9, 128), swept(0.95, 32)]
    facts += [swept(1.0, 64, standing=True, bounds=(89, 2)), swept(0.99, 128, bounds=(89, 2))]
    facts += [swept(0.1, 16, bounds=(1, 1))]  # and the one that stands was not measured
    assert choices.best_configurations(facts) == {"m": {"T": [[[999, 2], {"BLOCK": 128}]]}}
    path = tmp_path / "sweep.jsonl"
    for fact in facts:
        Facts(path).add(fact)
    assert choices.main([str(path)]) == 0
    path.unlink()
    assert choices.main([str(path)]) == 2


def test_a_launcher_takes_the_configurations_that_were_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    module = SimpleNamespace(TABLE=[((89, 2), {"BLOCK": 64}), ((999, 2), {"BLOCK": 32, "num_warps": 4})])
    monkeypatch.setattr(_choices.importlib, "import_module", lambda name: module)
    monkeypatch.setattr(_choices, "CONFIGURATIONS", {"x.triton": {"TABLE": [[[999, 2], {"BLOCK": 128}]]}})
    _choices.launcher_module.cache_clear()
    try:
        assert _choices.launcher_module("x.triton").TABLE == [
            ((89, 2), {"BLOCK": 64}),
            ((999, 2), {"BLOCK": 128}),
        ]
    finally:
        _choices.launcher_module.cache_clear()
    with pytest.raises(KeyError, match="bounds"):
        _choices.replace_row(module.TABLE, (1, 1), {})


def test_auto_takes_the_choice_for_the_size_of_the_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_backend, "FASTER_ON_CUDA", {"x": 1})
    monkeypatch.setattr(_backend, "unavailable", lambda *_: None)
    monkeypatch.setattr(_backend, "_forced", None)
    monkeypatch.setattr(_backend, "_picked", {})
    monkeypatch.setitem(
        _choices.FASTER_ON_CUDA, "hidden_mse", [(1000, "triton"), (choices.UNBOUNDED, "cuda")]
    )
    small, large = torch.empty(10, 100), torch.empty(11, 100)
    for tensor, wanted in ((small, "triton"), (large, "cuda"), ([small, small], "cuda")):
        assert _backend.pick("hidden_mse", "cuda", gpu_size("cuda", tensor)) == wanted
    assert gpu_size("cpu", small) is None


def test_the_command_of_choices(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = save(tmp_path, "gpu.json", gpu_results(gpu_entry()))
    assert choices.main([str(good)]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "faster_on_cuda": {"attention_map_loss": [[choices.UNBOUNDED, "cuda"]]}
    }
    for name, wrong, message in (
        ("cpu.json", results(entry()), "wants results of a GPU"),
        ("dry.json", gpu_results(gpu_entry(), quick=True), "not of a dry run"),
        ("one.json", gpu_results(gpu_entry(cuda=None)), "no operator was measured with both"),
    ):
        assert choices.main([str(save(tmp_path, name, wrong))]) == 2
        assert message in capsys.readouterr().err


# ---- configurations and profiles ----------------------------------------------------------------------------


def test_a_sweep_tries_the_row_that_stands_first_and_puts_it_back(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    plan = sweep.sweep_plan({"registers-128": "somewhere.so"})
    steps = [step for step in plan.steps if "row" in step.job]
    tried: dict[str, list[bool]] = {}
    for step in steps:
        row = step.job["row"]
        tried.setdefault(f"{row['module']} {row['table']}", []).append(step.job["standing"])
        table = getattr(__import__(row["module"], fromlist=["x"]), row["table"])
        before = list(table)
        with jobs._row(row):
            assert (tuple(row["bounds"]), row["meta"]) in [(tuple(bounds), meta) for bounds, meta in table]
        assert table == before and row["bounds"] in [list(bounds) for bounds, _ in table]
    assert all(first and not any(rest) for first, *rest in tried.values()) and len(tried) == len(sweep.SWEEPS)
    assert {name for name, _ in plan.background} == {name for step in steps for name in step.waits}
    varied = [step for step in plan.steps if "environment" in step.job]
    assert varied and all(step.needs or step.name.startswith("check") for step in varied)


def test_a_configuration_whose_check_fails_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    table = [((9,), {"BLOCK": 64})]
    monkeypatch.setattr(jobs.importlib, "import_module", lambda name: SimpleNamespace(T=table))
    row = {"module": "m", "table": "T", "bounds": [9], "meta": {"BLOCK": 128}}
    spec = problem(
        triton=lambda: torch.tensor([1.0, 2, 3]) * (1 + table[0][1]["BLOCK"] // 128),
        plain=lambda: torch.tensor([1.0, 2, 3]),
    )
    facts = []
    with pytest.raises(AssertionError, match="errors are"):
        for fact in jobs.sweep(spec, row, standing=False):
            facts.append(fact)
    assert [fact["kind"] for fact in facts] == ["check"] and table == [((9,), {"BLOCK": 64})]
    spec = problem(triton=lambda: torch.tensor([1.0, 2, 3]), plain=lambda: torch.ones(3))
    assert [fact["kind"] for fact in jobs.sweep(spec, row, standing=True)] == ["check", "sweep"]


def test_variants_are_builds_with_one_more_flag() -> None:
    text = "cxx = c++\nnvcc = /bin/nvcc -O3\nrule kernel\n  command = $nvcc -c"
    assert "nvcc = /bin/nvcc -O3 -maxrregcount=128\n" in variants.with_flag(text, "-maxrregcount=128")
    with pytest.raises(ValueError, match="got 0 lines"):
        variants.with_flag("nothing", "x")


def test_profiles_say_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = profile.profile_plan().steps
    assert len(steps) == 1 + len(profile.KERNELS) == 5
    monkeypatch.setattr(profile.shutil, "which", lambda name: None)
    job = {key: value for key, value in steps[1].job.items() if key != "do"}
    with pytest.raises(RuntimeError, match="no ncu on the PATH"):
        next(profile.profile(**job))
