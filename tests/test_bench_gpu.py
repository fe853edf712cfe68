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

from benchmarks import choices, device, gpu, harness, machine, peers
from bertxfer_fast import bench
from bertxfer_fast import bench_gpu_report as report
from bertxfer_fast.errors import InputError
from bertxfer_fast.ops._dispatch import backend as _backend
from bertxfer_fast.ops._dispatch import choices as _choices
from bertxfer_fast.ops._dispatch.autograd import gpu_size

from .test_bench import ROOT, cells, entry, fixture, pages, results, save

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


def gpu_results(*entries: dict[str, Any], quick: bool = False, **facts: Any) -> dict[str, Any]:
    return {"machine": {**H100, **facts}, "quick": quick, "entries": list(entries)}


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
    assert clock.flushed.nbytes >= 2 * cuda.cache
    call = cuda.kernel(3.0)
    clock.host_seconds(call)
    cuda.queue.clear()
    clock.flushed.fill_(7)
    assert clock.seconds(call, 2) == pytest.approx(3e-3)
    kinds = [x if isinstance(x, str) else x[0] for x in cuda.queue]
    assert kinds == ["sleep", "event", "kernel", "kernel", "event", "synchronize"]
    assert not clock.flushed.any()  # the cache was written over


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


@pytest.fixture
def on_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The harness goes the way of CUDA, on CPU tensors."""
    monkeypatch.setattr(device, "ON_GPU", True)
    monkeypatch.setattr(device, "OURS", ("triton", "cuda"))
    monkeypatch.setattr(device, "BACKENDS", ("triton", "cuda"))


def compare(implementations: dict[str, Any], **more: Any) -> dict[str, Any]:
    benchmark = fixture()
    try:
        harness.compare(
            benchmark,
            implementations,
            op="thing",
            shape="1",
            ours=("triton", "cuda"),
            with_memory=False,
            max_rounds=harness.MIN_ROUNDS,
            **more,
        )
    finally:
        compare.record = benchmark.extra_info  # type: ignore[attr-defined]
    return dict(benchmark.extra_info)


@pytest.mark.usefixtures("on_gpu")
def test_what_does_not_run_on_the_gpu_is_named_and_costs_nobody_else(
    tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setenv("BERTXFER_BENCH_RECORDS", str(tmp_path / "lines"))

    def too_large() -> None:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 TiB")

    one = torch.ones(3)
    record = compare(
        {
            "triton": "cannot run: no GPU",
            "cuda": lambda: one,
            "plain": too_large,
            "peer: x": "is not importable",
        },
        operator="thing",
        size=3,
    )
    assert list(record["implementations"]) == ["cuda"] and record["ours"] == "cuda"
    assert record["left_out"] == {
        "triton": "cannot run: no GPU",
        "plain": "runs out of memory",
        "peer: x": "is not importable",
    }
    assert (record["operator"], record["size"], record["difference"]) == ("thing", 3, None)
    lines = [json.loads(line) for line in (tmp_path / "lines").read_text().splitlines()]
    assert [line["running"] for line in lines] == ["cuda", "plain", ""]


@pytest.mark.usefixtures("on_gpu")
def test_a_backend_of_ours_that_fails_is_an_error_after_the_record_is_there() -> None:
    def broken() -> None:
        raise ValueError("no such tile\nmore")

    with pytest.raises(RuntimeError, match=r"cuda fails: ValueError: no such tile$"):
        compare({"triton": lambda: torch.ones(2), "cuda": broken})
    record = compare.record  # type: ignore[attr-defined]
    assert record["ours"] == "triton" and record["left_out"] == {"cuda": "fails: ValueError: no such tile"}
    with pytest.raises(RuntimeError, match="cuda fails"):
        compare({"cuda": broken, "plain": int})


@pytest.mark.usefixtures("on_gpu")
@pytest.mark.parametrize("wrong", [2.0, float("nan")])
def test_backends_that_disagree_are_an_error(wrong: float) -> None:
    same = (torch.ones(4), torch.full((2,), 3.0))
    assert compare({"triton": lambda: same, "cuda": lambda: same})["difference"] == 0
    with pytest.raises(RuntimeError, match="apart"):
        compare({"triton": lambda: same, "cuda": lambda: (same[0], same[1] * wrong)})


@pytest.mark.usefixtures("on_gpu")
def test_backends_that_cannot_run_here_say_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "TENSORS", "cuda")
    monkeypatch.setattr(_backend, "unavailable", lambda op, name, where: f"{op}: no {name} on {where}")
    found = harness.backends(int, "logits_kl", suffix="gram")
    assert found == {
        f"{name} gram": f"cannot run: logits_kl: no {name} on cuda" for name in ("triton", "cuda")
    }
    monkeypatch.setattr(_backend, "unavailable", lambda *_: None)
    monkeypatch.setattr(device, "WITHOUT", ["cuda"])
    found = harness.backends(int, "logits_kl")
    assert callable(found["triton"]) and "left out" in str(found["cuda"])


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
    assert [g.shape for g in call()] == [(1, 2, 4, 8)] * 2  # type: ignore[operator]


def test_gpu_facts_name_the_gpu_and_not_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "TENSORS", "cuda")
    properties = SimpleNamespace(
        name="Some GPU", major=9, minor=0, multi_processor_count=132, total_memory=85e9, L2_cache_size=50e6
    )
    facts = machine.gpu_facts(SimpleNamespace(get_device_properties=lambda _: properties))
    assert (facts["gpu"], facts["capability"], facts["cache_mb"]) == ("Some GPU", "9.0", 50)
    assert not {"node", "host", "hostname", "processor"} & facts.keys()
    json.dumps(facts)


# ---- the runner ---------------------------------------------------------------------------------------------


def test_without_a_gpu_it_stops_with_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(gpu, "_stream", lambda *_: pytest.fail("nothing may run"))
    assert gpu.main([]) == 2
    captured = capsys.readouterr()
    assert captured.err == "make gpu: torch sees no NVIDIA GPU here; there is nothing to measure\n"
    assert captured.out == ""
    assert gpu.main(["attention_mpa"]) == 2
    assert "did you mean 'attention_map'?" in capsys.readouterr().err


def test_a_dry_run_goes_all_the_way(tmp_path: Path) -> None:
    """Real benchmark, real runner, Triton's interpreter; no GPU and no build."""
    pytest.importorskip("triton")
    command = [sys.executable, "-m", "benchmarks.gpu", "hidden_mse", "--dry-run", "--results", str(tmp_path)]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("BERTXFER_")}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (written,) = tmp_path.glob("*.json")
    found = json.loads(written.read_text())
    (record,) = found["entries"]
    assert found["quick"] and record["ours"] == "triton" and record["tests"] == "not run: dry run"
    assert {"plain", "triton", "floor: copy"} <= record["implementations"].keys()
    assert "cuda" in record["left_out"] and record["operator"] == "hidden_mse" and record["size"] > 0
    assert done.stdout.rstrip().endswith(f"results in {written}")


def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *words: str) -> gpu.Run:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(gpu, "architecture", lambda: "90")
    monkeypatch.setattr(gpu.Run, "machine", lambda self: dict(H100))
    return gpu.Run(gpu._parser().parse_args([*words, "--results", str(tmp_path)]))


PASSED_ALL = "<t>" + "".join(f"<testcase classname='tests.gpu.x' name='{p}'/>" for p in gpu.PARTS) + "</t>"


def fake_stream(behaviour: Callable[[str, dict[str, str], Callable[..., None]], int | None]) -> Any:
    """In place of `_stream`: tests pass, a part does what ``behaviour`` says, and hands in lines."""

    def stream(command: list[str], environment: dict[str, str], seconds: float) -> int | None:
        text = " ".join(map(str, command))
        if "build_kernels.py" in text:
            assert environment["BERTXFER_CUDA_ARCHS"] == "90"
            return 0
        if "--junitxml" in text:
            Path(text.split("--junitxml=")[1].split()[0]).write_text(PASSED_ALL)
            return 0

        def leave(**line: Any) -> None:
            with open(environment["BERTXFER_BENCH_RECORDS"], "a") as file:
                file.write(json.dumps(line) + "\n")

        part = text.split("bench_")[1].split(".py")[0]
        return behaviour(part, environment, leave)

    return stream


def test_a_part_that_fails_or_crashes_costs_no_other_and_shows_in_the_exit_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def behaviour(part: str, environment: dict[str, str], leave: Callable[..., None]) -> int | None:
        without = environment["BERTXFER_BENCH_WITHOUT"]
        if part == "hidden_mse":
            leave(**gpu_entry("hidden_mse", "first", cuda=1.0 if not without else None))
            if not without:
                leave(running="cuda", of=[])
                return -11
            leave(**gpu_entry("hidden_mse", "second", cuda=None))
        elif part == "logits_kl":
            leave(running="plain", of=[])
            return None
        else:
            leave(**gpu_entry(part, "", difference=0.5 if part == "relation_kl" else 0.001))
        return 0

    monkeypatch.setattr(gpu, "_stream", fake_stream(behaviour))
    parts = "hidden_mse", "logits_kl", "relation_kl", "pool_features"
    assert run(tmp_path, monkeypatch, *parts).all() == 1
    (path,) = tmp_path.glob("*.json")
    assert path.name == "nvidia-h100-80gb-hbm3.json"
    found = {(e["op"], e["case"]): e for e in json.loads(path.read_text())["entries"]}
    assert set(found) == {
        ("hidden_mse", "first"),
        ("hidden_mse", "second"),
        ("relation_kl", ""),
        ("pool_features", ""),
    }
    # Of what was measured before the crash nothing is lost, and the second try measures the rest.
    assert "cuda" in found["hidden_mse", "first"]["implementations"]
    assert "cuda" not in found["hidden_mse", "second"]["implementations"]
    assert found["pool_features", ""]["tests"] == "passed"
    assert found["relation_kl", ""]["tests"] == "our backends' results lie 0.5 of their norm apart"
    out = capsys.readouterr().out
    assert "FAILED hidden_mse: the benchmark ended with -11 in cuda" in out
    assert "FAILED logits_kl: out of time in plain" in out and "FAILED pool_features" not in out


def test_parts_merge_into_the_results_that_are_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def measured(ms: float) -> Any:
        return fake_stream(lambda part, _, leave: leave(**gpu_entry(part, "", cuda=ms)) or 0)

    monkeypatch.setattr(gpu, "_stream", measured(1.0))
    assert run(tmp_path, monkeypatch, "hidden_mse", "logits_kl").all() == 0
    monkeypatch.setattr(gpu, "_stream", measured(0.5))
    assert run(tmp_path, monkeypatch, "logits_kl").all() == 0
    (path,) = tmp_path.glob("*.json")
    entries = json.loads(path.read_text())["entries"]
    assert {e["op"]: e["implementations"]["cuda"]["ms"] for e in entries} == {
        "hidden_mse": 1.0,
        "logits_kl": 0.5,
    }


def test_when_time_is_up_what_is_left_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "_stream", fake_stream(lambda *_: pytest.fail("no time for that")))
    made = run(tmp_path, monkeypatch, "logits_kl", "--minutes", "0.1")
    assert made.all() == 1 and made.failures == ["logits_kl: out of time"]


def test_tests_speak_for_the_parts_that_they_name() -> None:
    junit = """<testsuites><testsuite>
      <testcase classname="tests.gpu.test_ops" name="test_it[linear_logits_kl]"><failure/></testcase>
      <testcase classname="tests.gpu.test_ops" name="test_it[logits_kl]"/>
      <testcase classname="tests.gpu.test_ops" name="test_it[attention_map_loss-kl]"/>
      <testcase classname="tests.gpu.test_ops" name="test_it[hidden_mse]"><skipped/></testcase>
    </testsuite></testsuites>"""
    parts = ("linear_logits_kl", "logits_kl", "attention_map", "hidden_mse")
    said = gpu.verdicts_of(junit, parts)
    assert said["logits_kl"] == said["attention_map"] == "passed"
    assert said["linear_logits_kl"].startswith("1 failed, first tests.gpu.test_ops.test_it[linear")
    assert said["hidden_mse"] == "no test of it ran"
    of_all = '<t><testcase classname="tests.gpu.test_graphs" name="test_capture"><error/></testcase></t>'
    assert all(text.startswith("1 failed") for text in gpu.verdicts_of(of_all, parts).values())


def test_every_part_is_a_benchmark() -> None:
    assert set(gpu.PARTS) <= set(bench.names(ROOT))
    assert {op.split()[0] for op in report.MEASURED} == set(gpu.PARTS)


# ---- tables -------------------------------------------------------------------------------------------------


def test_without_results_every_row_says_so(tmp_path: Path) -> None:
    pages(tmp_path)
    save(tmp_path, "a-2threads.json", results(entry()))
    bench.write_docs(root=tmp_path)
    for page in ("README.md", "docs/performance.md"):
        text = (tmp_path / page).read_text()
        shown = text[text.index(report.MARKS[0]) : text.index(report.MARKS[1])]
        assert "former" not in text and shown.count("not yet measured") >= len(report.MEASURED)
        assert all(op in shown for op in report.MEASURED)


def test_our_own_pages_say_not_measured_exactly_while_there_are_no_results() -> None:
    found = [json.loads(path.read_text()) for path in (ROOT / "benchmarks" / "results").glob("*.json")]
    measured = any(report.is_gpu(x) for x in found)
    for page in ("README.md", "docs/performance.md"):
        text = (ROOT / page).read_text(encoding="utf-8")
        shown = text[text.index(report.MARKS[0]) : text.index(report.MARKS[1])]
        assert measured or "not yet measured" in shown


def test_gpu_results_fill_their_blocks_and_leave_the_others_alone(tmp_path: Path) -> None:
    pages(tmp_path)
    peer = {"ms": 7.0, "ratio": 7.0, "memory_mb": 1.0, "memory_ratio": 0.2, "memory_per_gradient": None}
    good = gpu_entry(left_out={"plain": "runs out of memory"})
    good["implementations"]["peer: LinearARD"] = peer
    good["implementations"]["floor: copy"] = {**peer, "ms": 0.75, "ratio": 0.75}  # the slower of two floors
    ragged = gpu_entry(case="kl ragged", gain=2.5, ideal_gain=2.6, valid=0.6)
    ragged["implementations"]["cuda full length"] = {**peer, "ms": 2.5}
    wrong = gpu_entry("hidden_mse", "", tests="1 failed, first x")
    path = save(tmp_path, "gpu.json", gpu_results(good, ragged, wrong))
    bench.write_docs(path, root=tmp_path)
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
    assert "No numbers, because the tests did not pass: hidden_mse." in text
    assert "Not yet measured: attention_score_mse" in text
    readme = (tmp_path / "README.md").read_text()
    assert "old" in readme and float(cells(readme, "attention_map kl")["vs compile"]) == 3.0
    assert cells(readme, "hidden_mse")["ms"] == "not yet measured"


def test_the_summary_shows_everything_and_whether_it_passed() -> None:
    shown = report.summary(gpu_results(gpu_entry(), gpu_entry("hidden_mse", "", tests="2 failed, first x")))
    assert "cuda" in shown and "passed" in shown and "2 failed" in shown
    assert report.summary(gpu_results()) == "Nothing was measured."


def test_gpu_plots_have_names_of_their_own(tmp_path: Path) -> None:
    made = [{**gpu_entry(), "length": n, "shape": str(n)} for n in (512, 2048)]
    (path,) = bench.plot(gpu_results(*made), tmp_path, bench.GPU_PLOTS)
    assert path.name == "gpu-attention_map-kl.svg"
    assert "<!-- ours, Triton" in path.read_text() and "<!-- ours, CUDA" in path.read_text()


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
    table = choices.choose([*small, *large, *ignored, gpu_entry("hidden_mse", "", dtype="float32")])
    assert table == {
        "attention_map_loss": [(1000, "triton"), (choices.UNBOUNDED, "cuda")],
        "hidden_mse": [(choices.UNBOUNDED, "cuda")],
    }


def test_choices_are_written_into_the_module_and_obeyed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = tmp_path / "_choices.py"
    module.write_text(choices.MODULE.read_text(encoding="utf-8"), encoding="utf-8")
    table = {"hidden_mse": [(1000, "triton"), (choices.UNBOUNDED, "cuda")], "logits_kl": [(50, "cuda")]}
    for again in (table, {}, table):
        choices.write(again, module)
        scope: dict[str, Any] = {"__name__": "chosen"}
        exec(compile(module.read_text(), "_choices", "exec"), scope)
        assert scope["FASTER_ON_CUDA"] == again
    faster = scope["faster_on_cuda"]
    assert (faster("hidden_mse", 1000), faster("hidden_mse", 1001)) == ("triton", "cuda")
    assert faster("logits_kl", 51) is faster("relation_kl", 1) is faster("hidden_mse", None) is None
    module.write_text("nothing")
    with pytest.raises(InputError, match="FASTER_ON_CUDA"):
        choices.write(table, module)


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
    assert '"attention_map_loss": [(1 << 62, "cuda")],' in capsys.readouterr().out
    for name, wrong, message in (
        ("cpu.json", results(entry()), "wants results of a GPU"),
        ("dry.json", gpu_results(gpu_entry(), quick=True), "not of a dry run"),
        ("one.json", gpu_results(gpu_entry(cuda=None)), "no operator was measured with both"),
    ):
        assert choices.main([str(save(tmp_path, name, wrong))]) == 2
        assert message in capsys.readouterr().err
