"""`make gpu` without a GPU: the way of CUDA in the benchmarks, the runner, the GPU's tables, choices from results."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import bertxfer_fast
from benchmarks import device, docs, harness, machine, peers, report
from benchmarks import gpu_report as tables
from benchmarks.gpu import __main__ as gpu
from benchmarks.gpu import collect, jobs
from benchmarks.gpu import tests as contract
from benchmarks.gpu.facts import read_facts
from benchmarks.gpu.problems import HALF, RAGGED, WHOLE
from benchmarks.results import Record, Results
from bertxfer_fast.ops._dispatch import backend as _backend

from .test_bench import ROOT, cells, entry, pages, results, save
from .test_bench_gpu_schedule import timed

H100 = {
    "gpu": "NVIDIA H100 80GB HBM3",
    "multiprocessors": 132,
    "memory_gb": 85,
    "torch": "2.11.0+cu130",
    "triton": "3.6.0",
    "nvcc": "13.0.48",
}


def gpu_entry(
    op: str = "attention_map",
    case: str = "kl",
    *,
    triton: float | None = 2.0,
    cuda: float | None = 1.0,
    size: int = 1000,
    **more: Any,
) -> dict[str, Any]:
    """A record as `harness.compare` leaves it on a GPU, with times in ms of the two backends."""
    made = entry(op, case, 512, "bfloat16", min(x for x in (triton, cuda) if x is not None))
    cpp = made["implementations"].pop("cpp")
    for name, ms in (("triton", triton), ("cuda", cuda)):
        if ms is not None:
            made["implementations"][name] = {**cpp, "ms": ms, "ratio": ms / cpp["ms"], "host_ms": 0.1}
    made["ours"] = "cuda" if cuda is not None and (triton is None or cuda < triton) else "triton"
    return {
        **made,
        "operator": "attention_map_loss" if op == "attention_map" else op,
        "size": size,
        "tests": "passed",
        **more,
    }


def gpu_results(*entries: dict[str, Any], quick: bool = False, **facts: Any) -> Results:
    return Results({**H100, **facts}, quick, [Record.from_json(x) for x in entries])


# ---- the harness --------------------------------------------------------------------------------------------


class FakeCuda:
    """As much of `torch.cuda` as the clock uses: a queue that remembers what was put into it."""

    def __init__(self, cache: int = 1000) -> None:
        self.cache, self.now, self.queue = cache, 0.0, []
        self.peak = self.allocated = 0

    def current_device(self) -> int:
        return 0

    def get_device_properties(self, _: int) -> Any:
        return SimpleNamespace(L2_cache_size=self.cache)

    def Event(self, *, enable_timing: bool) -> Any:
        assert enable_timing
        event = SimpleNamespace(at=None)
        event.record = lambda: (setattr(event, "at", self.now), self.queue.append("event"))
        event.elapsed_time = lambda end: end.at - event.at
        return event

    def _sleep(self, cycles: int) -> None:
        self.queue.append(("sleep", cycles))
        self.now += 1e6

    def synchronize(self) -> None:
        self.queue.append("synchronize")

    def kernel(self, ms: float) -> Callable[[], None]:
        def call() -> None:
            self.queue.append("kernel")
            self.now += ms

        return call

    def memory_allocated(self) -> int:
        return self.allocated

    def reset_peak_memory_stats(self) -> None:
        self.peak = self.allocated

    def max_memory_allocated(self) -> int:
        return self.peak


def test_device_time_is_what_lies_between_the_events() -> None:
    cuda = FakeCuda()
    clock = device.Events(cuda, where="cpu")
    assert clock.other.nbytes >= 2 * cuda.cache
    call = cuda.kernel(3.0)
    clock.host_seconds(call)
    cuda.queue.clear()
    clock.sum.zero_()
    assert clock.seconds(call, 2) == pytest.approx(3e-3)
    kinds = [x if isinstance(x, str) else x[0] for x in cuda.queue]
    assert kinds == ["sleep", "event", "kernel", "kernel", "event", "synchronize"]
    assert clock.sum == clock.other.numel() and (clock.other == 1).all()  # read, and nothing written


def test_the_gpu_waits_longer_than_the_host_needs_but_not_forever() -> None:
    cuda = FakeCuda()
    clock = device.Events(cuda, where="cpu")
    call = cuda.kernel(1.0)
    for host, least, most in ((1e-3, 1e-3, 2e-3), (10.0, 0.01, 0.1)):
        clock.ahead[call] = host
        cuda.queue.clear()
        clock.seconds(call)
        (cycles,) = (x[1] for x in cuda.queue if isinstance(x, tuple))
        assert least * 2e9 <= cycles <= most * 2e9


def test_peak_memory_is_beyond_what_was_there() -> None:
    cuda = FakeCuda()
    cuda.allocated = 500

    def call() -> None:
        cuda.peak = max(cuda.peak, cuda.allocated + 70)

    cuda.peak = 10_000  # of an earlier call
    assert device.peak_extra_bytes(call, cuda) == 70


def test_backends_that_cannot_run_here_say_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "ON_GPU", True)
    monkeypatch.setattr(device, "BACKENDS", ("triton", "cuda"))
    monkeypatch.setattr(device, "TENSORS", "cuda")
    monkeypatch.setattr(_backend, "unavailable", lambda op, name, where: f"{op}: no {name} on {where}")
    found = harness.backends(int, "logits_kl", suffix="gram")
    assert found == {
        f"{name} gram": f"cannot run: logits_kl: no {name} on cuda" for name in ("triton", "cuda")
    }


def test_peers_are_looked_for_on_a_gpu_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(1, 4, 2, 8, dtype=torch.bfloat16)
    assert peers.linear_ard(x, x, x, x) == peers.liger(x, x, x, x) == {}
    monkeypatch.setattr(device, "ON_GPU", True)
    monkeypatch.setattr(peers, "LINEAR_ARD", ("peer: LinearARD", "no.such.module"))
    assert "is not importable (ModuleNotFoundError" in str(peers.linear_ard(x, x, x, x)["peer: LinearARD"])
    assert peers.linear_ard(*[x.float()] * 4) == {}  # half precision only
    made = SimpleNamespace(attn_kl_align=lambda qs, ks, *_, **__: (qs.sum() + ks.sum()).float())
    monkeypatch.setattr(peers, "_load", lambda _: made)
    call = peers.linear_ard(x, x, x, x)["peer: LinearARD"]
    assert [g.shape for g in call()[1:]] == [(1, 2, 4, 8)] * 2  # type: ignore[operator,index]
    made = SimpleNamespace(
        flash_attn_varlen_func=lambda q, k, v, *_: q + k * v, varlen_attn=lambda q, k, v, *_: q + k * v
    )
    qkv = x.flatten(0, 1), x.flatten(0, 1), x.flatten(0, 1)
    calls = peers.flash_attention(qkv, torch.ones_like(qkv[0]), torch.tensor([0, 4]), 4)
    assert list(calls) == ["peer: flash-attn", "peer: torch varlen"]
    assert [[g.shape for g in call()] for call in calls.values()] == [[(4, 2, 8)] * 4] * 2


def test_gpu_facts_name_the_gpu_and_not_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "TENSORS", "cuda")
    properties = SimpleNamespace(
        name="Some GPU", major=9, minor=0, multi_processor_count=132, total_memory=85e9, L2_cache_size=50e6
    )
    facts = machine.gpu_facts(SimpleNamespace(get_device_properties=lambda _: properties))
    assert (facts["gpu"], facts["capability"], facts["cache_mb"]) == ("Some GPU", "9.0", 50)
    assert not {"node", "host", "hostname", "processor"} & facts.keys()
    json.dumps(facts)


# ---- the command --------------------------------------------------------------------------------------------


def test_without_a_gpu_it_stops_with_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(gpu, "WorkerRunner", lambda *_: pytest.fail("nothing may run"))
    assert gpu.main([]) == 2
    captured = capsys.readouterr()
    assert captured.err == "make gpu: torch sees no NVIDIA GPU here; there is nothing to measure\n"
    assert captured.out == ""
    assert gpu.main(["attention_mpa"]) == 2
    assert "did you mean 'attention_map'?" in capsys.readouterr().err


def test_a_dry_run_goes_all_the_way(tmp_path: Path) -> None:
    """Real problem, real worker, Triton's interpreter; no GPU and no build."""
    pytest.importorskip("triton")
    command = [sys.executable, "-m", "benchmarks.gpu", "hidden_mse", "--dry-run", "--results", str(tmp_path)]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("BERTXFER_")}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    facts = read_facts(next(tmp_path.glob("*.jsonl")))
    failed = {fact["step"] for fact in facts if fact.get("failed")}
    # There is no CUDA extension to run, which is a failure, and its timing is not tried.
    assert {step.split(" 32768")[0] for step in failed} == {"check cuda hidden_mse", "time cuda hidden_mse"}
    assert done.returncode == 1 and "FAILED check cuda hidden_mse" in done.stdout, done.stderr
    checks = [fact for fact in facts if fact["kind"] == "check"]
    assert checks and all(fact["backend"] == "triton" and fact["ok"] and fact["same_bits"] for fact in checks)
    found = Results.read(tmp_path / "none-dry-run.json")
    half = next(record for record in found.entries if record.dtype == "float16")
    assert found.quick and half.ours == "triton" and half.tests == "passed" and half.target_us == 150
    assert half.operator == "hidden_mse" and half.size


def test_every_implementation_of_every_problem_finds_what_is_true() -> None:
    """Tiny and on the CPU, baselines and floors too: what is wrong with them would be found on the GPU first."""
    if not bertxfer_fast.build_info()["compiled"]:
        pytest.skip("no compiled extension")
    command = [sys.executable, "-m", "tests.gpu_problems"]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("BERTXFER_")}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count(": fine") == len(HALF) + len(RAGGED) + len(WHOLE)


@pytest.mark.parametrize("spec", HALF, ids=lambda spec: spec.name)
def test_every_problem_can_be_built(spec: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """In tiny; the function that builds it takes what the plan hands over, through JSON."""
    module = __import__(f"benchmarks.{spec.module or 'bench_' + spec.part}", fromlist=["x"])
    job = json.loads(json.dumps(spec.job(dry=True)))
    taken = list(__import__("inspect").signature(getattr(module, job["builder"])).parameters)
    assert len(job["arguments"]) <= len(taken) and job["arguments"].count(None) <= 1


# ---- checks -------------------------------------------------------------------------------------------------


def problem(**calls: Any) -> dict[str, Any]:
    """A spec whose problem is already built: the truth of all of them is [1, 2, 3]."""
    spec = {"made": repr(sorted(calls)), "target_us": None}
    made = harness.Problem("thing", "3", calls, truth=lambda: (torch.tensor([1.0, 2, 3]).double(),))
    jobs._built.clear(), jobs._truths.clear()
    jobs._built[repr(spec)] = made
    return spec


def checked(spec: dict[str, Any], backend: str = "cuda") -> dict[str, Any]:
    """The fact; that the job fails exactly if the fact says so is checked here."""
    facts: list[dict[str, Any]] = []
    try:
        facts.extend(jobs.check(spec, backend))
    except AssertionError:
        facts = []
        with pytest.raises(AssertionError):
            for fact in jobs.check(spec, backend):
                facts.append(fact)
    assert facts[-1]["ok"] == (len(facts) == 1 and facts[0]["ok"])
    return facts[0]


def test_a_check_compares_with_the_truth() -> None:
    right = torch.tensor([1.0, 2, 3])
    plain = torch.tensor([1.1, 2, 3])
    assert checked(problem(cuda=lambda: right, plain=lambda: plain))["errors"] == [0.0]
    assert not checked(problem(cuda=lambda: right * 1.3, plain=lambda: right))["ok"]
    assert not checked(problem(cuda=lambda: right * torch.nan, plain=lambda: right))["ok"]
    # As far off as twice plain PyTorch is nobody's error.
    assert checked(problem(cuda=lambda: plain, plain=lambda: plain))["ok"]
    moving = iter([right, right * (1 + 1e-6)] * 4)
    assert not checked(problem(cuda=lambda: next(moving), plain=lambda: right))["same_bits"]


def test_a_check_sees_elements_that_nobody_writes() -> None:
    def forgets() -> torch.Tensor:
        out = torch.empty(3)
        out[:2] = torch.tensor([1.0, 2])
        return out

    assert not checked(problem(cuda=forgets, plain=lambda: torch.ones(3)))["ok"]


def test_what_does_not_run_is_named_and_costs_nobody_else() -> None:
    def too_large() -> None:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 TiB")

    spec = problem(
        cuda=int, plain=too_large, compile=None, **{"peer: x": "is not importable", "floor: a": int}
    )
    facts = list(jobs.measure(spec, ["cuda", "plain", "compile", "peer:", "floor:"]))
    said = {fact["implementation"]: fact.get("why", "timed") for fact in facts}
    assert said == {
        "cuda": "timed",
        "plain": "runs out of memory",
        "compile": "was asked to be left out",
        "peer: x": "is not importable",
        "floor: a": "timed",
    }
    json.dumps(facts)
    with pytest.raises(RuntimeError, match="peer: x is not importable"):
        next(jobs.check(spec, "peer: x"))


def test_in_the_background_kernels_are_compiled_and_not_launched(monkeypatch: pytest.MonkeyPatch) -> None:
    jit = pytest.importorskip("triton.runtime.jit")
    seen: list[bool] = []
    monkeypatch.setattr(jit.JITFunction, "run", lambda self, *_, grid, warmup, **__: seen.append(warmup))
    kernel = jit.JITFunction(test_the_summary_shows_everything_and_whether_it_passed)
    spec = problem(triton=lambda: kernel[(1,)](3))
    assert [fact["kind"] for fact in jobs.compile_triton(spec)] == ["compiling"]
    kernel[(1,)](3)
    assert seen == [True, False] and not jobs._built


def test_a_measured_problem_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    """With its tensors: forty of them do not fit on one GPU."""
    events = device.Events(FakeCuda(), where="cpu")
    monkeypatch.setattr(jobs, "_events", [events])
    events.ahead[int] = 1.0
    problem(cuda=int)
    jobs._forget()
    assert not (jobs._built or jobs._truths or events.ahead)


def test_verdicts_of_tests_are_facts_when_they_are_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BERTXFER_BENCH_VERDICTS", str(tmp_path / "facts"))
    for when, outcome, why in (
        ("setup", "passed", ""),
        ("call", "passed", ""),
        ("call", "failed", "a\nE  b"),
    ):
        contract.pytest_runtest_logreport(
            SimpleNamespace(
                when=when, outcome=outcome, failed=outcome == "failed", nodeid="t", duration=1, longrepr=why
            )
        )
    facts = read_facts(tmp_path / "facts")
    assert [fact["outcome"] for fact in facts] == ["passed", "failed"] and facts[1]["why"] == "E  b"
    monkeypatch.setenv("PYTEST_XDIST_WORKER", "gw0")  # the process that collects reports writes them, once
    contract.pytest_runtest_logreport(SimpleNamespace(when="call", outcome="passed"))
    assert len(read_facts(tmp_path / "facts")) == 2


# ---- results of facts ---------------------------------------------------------------------------------------

KEY = ["hidden_mse", "", "1x2", "bfloat16"]
DEVICE = {"kind": "device", "machine": dict(H100)}


def test_facts_make_records() -> None:
    ours = [
        timed(KEY, "cuda", 3.0, target_us=150),
        timed(KEY, "cuda", 2.0, target_us=150),
        timed(KEY, "triton", 4.0),
    ]
    others = [
        timed(KEY, "plain", 8.0, memory_mb=6.0),
        timed(KEY, "floor: copy", 1.0),
        timed(KEY, "cuda", 1.0, build="x"),
    ]
    left = {"kind": "left out", "problem": KEY, "implementation": "peer: Liger", "why": "is not importable"}
    found = collect.results_of([DEVICE, *ours, *others, left, {"kind": "ceiling", "name": "copy"}])
    assert found is not None and found.machine == H100
    (record,) = found.entries
    assert (
        record.key == tuple(KEY)
        and record.ours == "cuda"
        and record.tests == "passed"
        and record.target_us == 150
    )
    plain = record.implementations["plain"]
    assert (record.value("cuda", "ms"), plain.ratio, plain.memory_ratio, plain.memory_per_gradient) == (
        2.0,
        4,
        3,
        6,
    )
    assert record.left_out == {"peer: Liger": "is not importable"}
    assert collect.results_of(ours) is None  # of which device?


def test_a_check_that_fails_takes_what_was_timed_before() -> None:
    wrong = {"kind": "check", "problem": KEY, "backend": "triton", "ok": False}
    facts = [DEVICE, timed(KEY, "triton", 1.0), timed(KEY, "cuda", 2.0), wrong]
    (record,) = collect.results_of(facts).entries  # type: ignore[union-attr]
    assert record.ours == "cuda" and "triton" not in record.implementations
    assert record.left_out == {"triton": "failed its check"}
    assert collect.results_of([DEVICE, timed(KEY, "triton", 1.0), wrong]).entries == []  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("op", "test", "passes"),
    [
        ("logits_kl", "test_it[cuda-linear_logits_kl]", True),
        ("linear_logits_kl", "test_it[cuda-linear_logits_kl]", False),
        ("attention_map_loss", "test_it[cuda-attention_map_loss kl 26/64]", False),
        ("attention_map_loss", "test_accuracy[cuda-attention_map-kl]", False),
        ("pool_features_backward", "test_it[triton-pool_features mean]", False),
        ("hidden_mse", "test_it[cuda-hidden_cosine]", True),
    ],
)
def test_tests_speak_for_the_operators_that_they_name(op: str, test: str, passes: bool) -> None:
    facts = [DEVICE, timed([op, *KEY[1:]], "cuda"), {"kind": "test", "test": test, "outcome": "failed"}]
    (record,) = collect.results_of(facts).entries  # type: ignore[union-attr]
    assert record.passed == passes


# ---- tables -------------------------------------------------------------------------------------------------


def test_without_results_there_is_no_table(tmp_path: Path) -> None:
    pages(tmp_path)
    save(tmp_path, "a-2threads.json", results(entry()))
    docs.write_docs(tmp_path)
    for page in ("README.md", "docs/performance.md"):
        text = (tmp_path / page).read_text()
        assert "former" not in text and f"{tables.MARKS[0]}\n{tables.MARKS[1]}" in text


def test_our_own_pages_have_a_table_exactly_if_there_are_results() -> None:
    found = [Results.read(path) for path in (ROOT / "benchmarks" / "results").glob("*.json")]
    measured = any(x.of_gpu for x in found)
    for page in ("README.md", "docs/performance.md"):
        text = (ROOT / page).read_text(encoding="utf-8")
        shown = text[text.index(tables.MARKS[0]) : text.index(tables.MARKS[1])]
        assert measured == ("|" in shown) and "not yet measured" not in text


def test_gpu_results_fill_their_blocks_and_leave_the_others_alone(tmp_path: Path) -> None:
    pages(tmp_path)
    peer = {"ms": 7.0, "ratio": 7.0, "memory_mb": 1.0, "memory_ratio": 0.2, "quartiles": [7.0, 7.0]}
    good = gpu_entry(left_out={"plain": "runs out of memory"})
    good["implementations"]["peer: LinearARD"] = peer
    good["implementations"]["floor: copy"] = {**peer, "ms": 0.75, "ratio": 0.75}  # the slower of two floors
    ragged = gpu_entry(case="kl ragged", gain=2.5, ideal_gain=2.6, valid=0.6)
    ragged["implementations"]["cuda full length"] = {**peer, "ms": 2.5}
    wrong = gpu_entry("hidden_mse", "", tests="1 failed, first x")
    path = save(tmp_path, "gpu.json", gpu_results(good, ragged, wrong))
    docs.write_docs(tmp_path, path)
    text = (tmp_path / "docs" / "performance.md").read_text()
    assert "\nold\n" in text and "former" not in text
    row = cells(text, "attention_map kl")
    wanted = {
        "ms": 1.0,
        "Triton ms": 2.0,
        "CUDA ms": 1.0,
        "vs compile": 3.0,
        "vs floor": 0.75,
        "vs peer": 7.0,
    }
    assert {name: float(row[name]) for name in wanted} == wanted
    row = cells(text, "attention_map kl ragged")
    assert (float(row["ms packed"]), float(row["ms full length"]), float(row["gain"])) == (1.0, 2.5, 2.5)
    assert "attention_map kl: plain runs out of memory" in text and "NVIDIA H100" in text
    assert "hidden_mse" not in text and "## Results on a GPU" in text
    readme = (tmp_path / "README.md").read_text()
    assert "old" in readme and float(cells(readme, "attention_map kl")["vs compile"]) == 3.0
    assert "hidden_mse" not in readme


def test_the_summary_shows_everything_and_whether_it_passed() -> None:
    shown = tables.summary(gpu_results(gpu_entry(), gpu_entry("hidden_mse", "", tests="2 failed, first x")))
    assert "cuda" in shown and "passed" in shown and "2 failed" in shown
    assert tables.summary(gpu_results()) == "Nothing was measured."


def test_gpu_plots_have_names_of_their_own(tmp_path: Path) -> None:
    made = [{**gpu_entry(), "length": n, "shape": str(n)} for n in (512, 2048)]
    (path,) = report.plot(gpu_results(*made), tmp_path, docs.GPU_PLOTS)
    assert path.name == "gpu-attention_map-kl.svg"
    assert "<!-- ours, Triton" in path.read_text() and "<!-- ours, CUDA" in path.read_text()
