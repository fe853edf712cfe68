"""`bertxfer bench`: the harness counts right, what fails gets no numbers, results merge, tables and plots show them."""

from __future__ import annotations

import importlib
import itertools
import json
import xml.etree.ElementTree as ET
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks import docs, harness, machine, memory, report
from benchmarks import run as bench
from benchmarks.harness import Problem
from benchmarks.inputs import Ragged
from benchmarks.results import Record, Results, seconds_of
from bertxfer_fast import cli
from bertxfer_fast.errors import InputError

ROOT = Path(__file__).resolve().parent.parent


# ---- the harness --------------------------------------------------------------------------------------------


class Clock:
    """Stands in for the module `time`; calls made by `taking` move it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        self.called: list[str] = []
        monkeypatch.setattr(harness, "time", SimpleNamespace(perf_counter=lambda: self.now))

    def taking(self, name: str, *seconds: float) -> harness.Call:
        durations = itertools.cycle(seconds)

        def call() -> None:
            self.called.append(name)
            self.now += next(durations)

        return call


def fixture() -> Any:
    """As much of pytest-benchmark's fixture as `compare` uses."""
    return SimpleNamespace(extra_info={}, pedantic=lambda *args, **kwargs: None)


def test_compare_records_medians_quartiles_and_ratios(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    # Two calls of warm-up, which do not count; then rounds of 4, 8, 6, 9, ...
    plain = clock.taking("plain", 9.0, 9.0, 4.0, 8.0, 6.0)
    benchmark = fixture()
    problem = Problem(
        op="thing",
        shape="2x3",
        implementations={
            "cpp": clock.taking("cpp", 2.0),
            "plain": plain,
            "floor: copy": clock.taking("floor", 0.5),
            "x": None,
        },
        case="kl",
        length=3,
        dtype=torch.bfloat16,
        valid=0.5,
        gradient_bytes=4_000_000,
    )
    record = harness.compare(benchmark, problem, with_memory=False, max_rounds=harness.MIN_ROUNDS)
    assert Record.from_json(json.loads(json.dumps(benchmark.extra_info))) == record
    found = record.implementations
    assert list(found) == ["cpp", "plain", "floor: copy"]
    assert found["cpp"].ms == 2000 and found["cpp"].ratio == 1
    assert found["plain"].ratio == found["plain"].ms / 2000 > 1
    assert found["floor: copy"].ratio == 0.25 and record.floor == "floor: copy"
    low, high = found["plain"].quartiles
    assert 4000 <= low < found["plain"].ms < high <= 9000
    assert (record.dtype, record.valid, record.gradient_mb) == ("bfloat16", 0.5, 4.0)
    assert record.memory_note == "not measured" and found["cpp"].memory_mb is None
    assert record.seconds == clock.now and Counter(clock.called)["plain"] == harness.WARMUP + record.rounds


def test_a_ragged_batch_is_compared_with_its_full_length(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    calls = {"cpp": clock.taking("cpp", 2.0), "cpp full length": clock.taking("whole", 5.0)}
    record = harness.compare(
        fixture(), Problem("thing", "1", calls, ideal_gain=3.0), with_memory=False, max_rounds=7
    )
    assert (record.gain, record.ideal_gain) == (2.5, 3.0)


def test_what_is_not_the_same_is_not_timed() -> None:
    def wrong(backend: str) -> None:
        raise AssertionError(f"{backend} is off")

    problem = Problem("x", "1", {"cpp": lambda: pytest.fail("was timed")}, check=wrong)
    with pytest.raises(AssertionError, match="cpp is off"):
        harness.compare(fixture(), problem, with_memory=False)


@pytest.mark.parametrize("parts", [1, 2])
def test_the_truth_is_float64_whole_or_in_parts(parts: int) -> None:
    x, y = torch.randn(4, 3, dtype=torch.bfloat16, requires_grad=True), torch.randn(4, 3)
    loss, grad = harness.in_float64(lambda a, b: (a - b).square().mean(), (x, y), parts=parts)
    wanted = x.detach().double() - y.double()
    torch.testing.assert_close(loss, wanted.square().mean(), rtol=1e-14, atol=0)
    torch.testing.assert_close(grad, wanted / 6, rtol=1e-14, atol=0)
    out, grad = harness.in_float64(lambda a: 2 * a, (x,), y, parts=parts)
    assert torch.equal(out, 2 * x.detach().double()) and torch.equal(grad, 2 * y.double())


def test_rounds_follow_the_time_that_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)

    def rounds(seconds: float, calls: int = 1) -> int:
        limits = {"seconds": 6.0, "calls": calls, "min_rounds": 7, "max_rounds": 50}
        return len(harness.take_turns({"a": clock.taking("a", seconds)}, **limits)["a"])

    assert rounds(10.0) == 7 and rounds(0.5) == 12 and rounds(0.001) == 50
    assert rounds(0.0625, calls=8) == 12


def test_many_calls_are_timed_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    taken = harness.take_turns({"a": clock.taking("a", 1.0, 3.0)}, seconds=0, calls=4, min_rounds=2)
    assert taken["a"] == [2.0, 2.0]


@pytest.mark.parametrize("n", [1, 2, 5, 6])
def test_every_implementation_follows_every_other_equally_often(n: int) -> None:
    names = [str(i) for i in range(n)]
    orders = [harness.turn_order(names, turn) for turn in range(2 * n)]
    assert all(sorted(order) == names for order in orders)
    follows = Counter(pair for order in orders for pair in itertools.pairwise(order))
    assert len(follows) == n * (n - 1) and set(follows.values()) <= {2}


def test_compile_that_never_compiled_is_an_error() -> None:
    torch._dynamo.utils.counters.clear()
    with pytest.raises(RuntimeError, match="never compiled"):
        harness.compare(fixture(), Problem("x", "1", {"cpp": int, "compile": int}), with_memory=False)


def test_what_does_not_fit_is_left_out_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available_bytes", lambda: 10**9)
    needs = {"plain": 2 * 10**9, "cpp": 10**8, "compile": 10**12}
    calls = {"cpp": int, "plain": lambda: pytest.fail("does not fit"), "compile": None}
    record = harness.compare(
        fixture(), Problem("x", "1", calls, needs=needs), with_memory=False, max_rounds=7
    )
    assert list(record.implementations) == ["cpp"]
    assert record.left_out == {"plain": "needs about 2 GB, 1 GB are available"}


@pytest.mark.skipif(memory.unavailable() is not None, reason=str(memory.unavailable()))
def test_the_memory_probe_sees_what_is_used_and_nothing_else() -> None:
    size = 64 * 2**20
    seen = memory.peak_extra_bytes(lambda: torch.ones(size // 4))
    assert seen == pytest.approx(size, rel=0.05)
    # Freed before the call returns, it still was the peak; freed before the call starts, it does not hide the next.
    passing = memory.peak_extra_bytes(lambda: torch.ones(size // 4).sum())
    assert passing == pytest.approx(size, rel=0.05)
    assert memory.peak_extra_bytes(lambda: None) < 0.05 * size


def test_memory_that_cannot_be_read_is_null_and_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(memory, "_CLEAR", tmp_path / "none" / "clear_refs")
    memory.unavailable.cache_clear()
    try:
        assert memory.peak_extra_bytes(lambda: None) is None
        record = harness.compare(fixture(), Problem("x", "1", {"cpp": int}), max_rounds=7)
    finally:
        memory.unavailable.cache_clear()
    assert "clear_refs cannot be written" in str(record.memory_note)
    assert record.implementations["cpp"].memory_mb is None


def test_gradients_are_counted_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "unavailable", lambda: None)
    monkeypatch.setattr(memory, "peak_extra_bytes", lambda call: call())
    calls = {"cpp": lambda: 3_000_000, "plain": lambda: 12_000_000}
    record = harness.compare(fixture(), Problem("x", "1", calls, gradient_bytes=2_000_000), max_rounds=7)
    plain = record.implementations["plain"]
    assert (plain.memory_mb, plain.memory_ratio, plain.memory_per_gradient) == (12, 4, 6)


def test_ragged_batches_know_their_shares() -> None:
    batch = Ragged(torch.tensor([4, 2], dtype=torch.int32), 4)
    assert batch.tokens == 6 / 8 and batch.pairs == (16 + 4) / 32
    assert batch.cu_seqlens.tolist() == [0, 4, 6] and batch.max_seqlen == 4
    padded = torch.arange(8.0).view(2, 4).requires_grad_()
    assert batch.pack(padded).tolist() == [0, 1, 2, 3, 4, 5]
    drawn = Ragged.draw(1000, 64).lengths
    assert int(drawn.min()) >= 16 and int(drawn.max()) == 64 and 38 < drawn.float().mean() < 42


def test_machine_facts_do_not_name_the_host() -> None:
    facts = machine.facts()
    assert facts["torch"] == torch.__version__ and facts["threads"] == torch.get_num_threads()
    assert not {"node", "host", "hostname"} & facts.keys()


# ---- tables, merging, plots ---------------------------------------------------------------------------------

MACHINE = {
    "processor": "Some(R) CPU(TM) 9000 @ 2GHz",
    "features": ["avx2"],
    "threads": 2,
    "instruction_set": "avx2",
    "compiler": "12.2",
    "torch": "2.13",
    "allocator": {},
}


def entry(
    op: str = "attention_map",
    case: str = "kl",
    length: int | None = 128,
    dtype: str = "float32",
    ms: float = 2.0,
    **more: Any,
) -> dict[str, Any]:
    def result(ratio: float) -> dict[str, Any]:
        return {
            "ms": ms * ratio,
            "quartiles": [ms, ms],
            "ratio": ratio,
            "memory_mb": 5 * ratio,
            "memory_ratio": ratio,
            "memory_per_gradient": ratio,
        }

    return {
        "op": op,
        "case": case,
        "shape": f"4x{length}",
        "length": length,
        "dtype": dtype,
        "valid": 1.0,
        "ours": "cpp",
        "threads": 2,
        "rounds": 7,
        "gradient_mb": 5.0,
        "memory_note": None,
        "left_out": {},
        "implementations": {
            "cpp": result(1.0),
            "plain": result(4.0),
            "compile": result(3.0),
            "floor: products": result(0.5),
        },
        **more,
    }


def results(*entries: dict[str, Any], quick: bool = False, **facts: Any) -> Results:
    return Results({**MACHINE, **facts}, quick, [Record.from_json(x) for x in entries])


def cells(text: str, first: str) -> dict[str, str]:
    """The row of a markdown table that starts with `first`, by column."""
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]
    start = next(i for i, line in enumerate(lines) if line[0] == first)
    head = max(i for i, line in enumerate(lines) if line[0] == "op" and i < start)
    return dict(zip(lines[head], lines[start], strict=True))


def test_markdown_shows_each_number_under_its_name() -> None:
    ragged = entry(case="kl ragged", gain=2.5, ideal_gain=2.6, valid=0.625)
    overhead = entry("overhead", "hidden_mse", None, ms=0.1)
    shown = report.markdown(
        results(entry(left_out={"eager": "needs about 9 GB"}), ragged, overhead), ["plots/x.svg"]
    )
    row = cells(shown, "attention_map kl")
    assert (row["shape"], row["dtype"]) == ("4x128", "float32")
    assert {
        k: float(row[k]) for k in ("ms", "vs compile", "vs plain", "vs floor", "MB", "MB vs compile")
    } == {
        "ms": 2.0,
        "vs compile": 3.0,
        "vs plain": 4.0,
        "vs floor": 0.5,
        "MB": 5.0,
        "MB vs compile": 3.0,
    }
    assert "vs float32" not in row  # nothing to say in any row
    row = cells(shown, "attention_map kl ragged")
    assert (float(row["gain"]), float(row["ideal gain"]), float(row["real tokens"])) == (2.5, 2.6, 0.625)
    row = cells(shown, "hidden_mse")
    assert (float(row["microseconds"]), float(row["times mse_loss"])) == (100.0, 2.0)
    assert "Some(R) CPU" in shown and "2 threads" in shown and "torch 2.13" in shown
    assert "without eager, it needs about 9 GB" in shown and "![x](plots/x.svg)" in shown


def test_partial_results_replace_only_what_was_measured() -> None:
    old = results(entry(ms=1.0), entry(ms=1.0, dtype="bfloat16"), entry("pool_features", "", None, ms=1.0))
    merged = results(entry(ms=9.0), entry(length=512, ms=9.0)).merged_into(old)
    found = {(e.op, e.shape, e.dtype): e.implementations["cpp"].ms for e in merged.entries}
    assert found == {
        ("attention_map", "4x128", "float32"): 9.0,
        ("attention_map", "4x128", "bfloat16"): 1.0,
        ("attention_map", "4x512", "float32"): 9.0,
        ("pool_features", "4xNone", "float32"): 1.0,
    }
    other = results(entry(length=512), torch="9.9")
    assert other.merged_into(old).entries == other.entries
    assert old.merged_into(None).entries == sorted(old.entries, key=lambda e: (e.op, e.dtype))


def test_results_that_are_committed_can_be_read_and_written_again(tmp_path: Path) -> None:
    """Files of earlier versions, with all that they have."""
    for path in (ROOT / "benchmarks" / "results").glob("*.json"):
        found = Results.read(path)
        assert found.entries and found.save(tmp_path / path.name).entries == sorted(
            found.entries, key=lambda e: e.key
        )
        assert Results.read(tmp_path / path.name).entries == sorted(found.entries, key=lambda e: e.key)


def test_plots_show_every_dtype_and_implementation(tmp_path: Path) -> None:
    points = [entry(length=n, dtype=d, ms=n / 64) for n in (128, 512) for d in ("float32", "bfloat16")]
    alone, step = entry("relation_kl", ""), [entry("step", "", length=n) for n in (128, 512)]
    written = report.plot(results(*points, alone, *step), tmp_path / "plots")
    assert [path.name for path in written] == ["attention_map-kl.svg"]
    text = written[0].read_text()
    ET.fromstring(text)
    for word in (
        "float32",
        "bfloat16",
        "ours",
        "torch.compile",
        "plain eager",
        "time, ms",
        "peak extra memory",
    ):
        assert f"<!-- {word}" in text, word
    assert text == report.plot(results(*points), tmp_path / "again")[0].read_text()


def pages(root: Path) -> None:
    (root / "docs").mkdir()
    for page in (root / "docs" / "performance.md", root / "README.md"):
        blocks = [
            f"<!-- {mark}:begin -->\n{old}\n<!-- {mark}:end -->"
            for mark, old in (("bench", "old"), ("bench:gpu", "former"))
        ]
        page.write_text("\n\n".join(["before", *blocks, "after\n"]))


def save(root: Path, name: str, what: Results) -> Path:
    path = root / "benchmarks" / "results" / name
    path.unlink(missing_ok=True)
    what.save(path)
    return path


def test_docs_get_the_results_between_their_markers(tmp_path: Path) -> None:
    pages(tmp_path)
    rows = [entry(length=n) for n in (128, 512)]
    save(
        tmp_path,
        "a-2threads.json",
        results(*rows, entry("hidden_mse", "", None), entry("x", dtype="bfloat16")),
    )
    save(tmp_path, "a-1threads.json", results(entry("one_thread"), threads=1))
    tuned = results(entry("kept_memory"))
    tuned.machine["allocator"] = {"MALLOC_TRIM_THRESHOLD_": "1"}
    save(tmp_path, "a-2threads-malloc.json", tuned)
    docs.write_docs(tmp_path)
    readme = (tmp_path / "README.md").read_text()
    assert readme.startswith("before\n") and readme.endswith("after\n") and "old" not in readme
    row = cells(readme, "attention_map kl")
    assert (row["L = 128"], row["L = 512"], row["L = 2048"], row["other"]) == ("3.0", "3.0", "-", "-")
    assert cells(readme, "hidden_mse")["other"] == "3.0 (4xNone)"
    assert "one_thread" not in readme and "x kl" not in readme
    performance = (tmp_path / "docs" / "performance.md").read_text()
    assert "one_thread" in performance and "x kl" in performance and "1 threads" in performance
    assert "kept_memory" not in readme  # what PyTorch does unless told otherwise comes first
    assert performance.index("x kl") < performance.index("kept_memory")


def test_docs_refuse_quick_numbers_missing_results_and_missing_markers(tmp_path: Path) -> None:
    pages(tmp_path)
    with pytest.raises(InputError, match="no results"):
        docs.write_docs(tmp_path)
    save(tmp_path, "a.json", results(entry(), quick=True))
    with pytest.raises(InputError, match="quick run"):
        docs.write_docs(tmp_path)
    save(tmp_path, "a.json", results(entry()))
    (tmp_path / "README.md").write_text("no markers")
    with pytest.raises(InputError, match=r"README\.md: wants one <!-- bench:begin"):
        docs.write_docs(tmp_path)


@pytest.mark.parametrize("page", ["README.md", "docs/performance.md"])
def test_our_own_pages_have_a_place_for_results(page: str, tmp_path: Path) -> None:
    copy = tmp_path / "page.md"
    copy.write_text((ROOT / page).read_text(encoding="utf-8"), encoding="utf-8")
    report.replace_block(copy, "NEW")
    assert "<!-- bench:begin -->\nNEW\n<!-- bench:end -->" in copy.read_text(encoding="utf-8")


# ---- the command --------------------------------------------------------------------------------------------


CONFTEST = f"""
import json, os, pytest

def tell(**event):
    with open(os.environ["BERTXFER_BENCH_EVENTS"], "a") as file:
        file.write(json.dumps(event) + "\\n")

def pytest_collection_finish(session):
    tell(machine={MACHINE!r}, cases=len(session.items))

@pytest.fixture
def hand_in():
    return lambda record: tell(record=record)
"""


def fake_checkout(root: Path, **tests: str) -> Path:
    """Benchmarks that only hand in a made-up record and leave a trace, with the given tests."""
    (root / "tests" / "ops").mkdir(parents=True)
    (root / "benchmarks").mkdir()
    (root / "benchmarks" / "conftest.py").write_text(CONFTEST)
    for op, body in tests.items():
        (root / "tests" / "ops" / f"test_{op}.py").write_text(f"def test_{op}():\n    {body}\n")
        records = [entry(op, length=n, seconds=1.0) for n in (128, 512)]
        (root / "benchmarks" / f"bench_{op}.py").write_text(
            "import os, pathlib, pytest\n"
            f"@pytest.mark.parametrize('record', {records!r}, ids=str)\n"
            "def test_it(hand_in, record):\n"
            f"    assert not pathlib.Path('break-{op}').exists() or record['length'] == 128\n"
            f"    pathlib.Path('ran-{op}').write_text(os.environ['OMP_NUM_THREADS'])\n"
            "    hand_in(record)\n"
        )
    return root


def test_what_fails_its_tests_gets_no_numbers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = fake_checkout(tmp_path, good="assert True", wrong="assert 1 + 1 == 3")
    assert bench.run(["wrong", "good"], root=root, threads=3) == 1
    captured = capsys.readouterr()
    refusal = [line for line in captured.err.splitlines() if line.startswith("bertxfer: ")]
    assert len(refusal) == 1 and refusal[0].startswith("bertxfer: wrong: no numbers, its tests fail: FAILED")
    assert "test_wrong" in refusal[0]
    assert "good kl" in captured.out and "wrong" not in captured.out
    assert not (root / "ran-wrong").exists() and (root / "ran-good").read_text() == "3"
    path = root / "benchmarks" / "results" / "some-cpu-9000-2threads.json"
    written = Results.read(path)
    assert written.machine == MACHINE and {e.op for e in written.entries} == {"good"}
    assert (root / "docs" / "plots" / "good-kl.svg").exists()


def test_each_case_is_shown_and_saved_when_it_is_done(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A benchmark that breaks in its second case keeps its first."""
    root = fake_checkout(tmp_path, good="assert True", other="assert True")
    (root / "break-good").touch()
    assert bench.run(["good", "other"], root=root) == 1
    written = Results.read(root / "benchmarks" / "results" / "some-cpu-9000-2threads.json")
    assert [(e.op, e.length) for e in written.entries] == [("good", 128), ("other", 128), ("other", 512)]
    err = capsys.readouterr().err
    assert "good: 2 cases" in err and "[1/2] good kl 4x128 float32: cpp 2 ms (1.00 x)" in err
    assert "left of good; then other" in err and "[2/2] other" in err
    assert seconds_of(written.entries, "other") == 2.0 and seconds_of(written.entries, "x") is None


def test_what_is_left_is_told_from_this_run_and_an_earlier_one(capsys: pytest.CaptureFixture[str]) -> None:
    earlier = [Record.from_json(entry("next", seconds=200.0))]
    progress = bench._Progress("now", ["next"], earlier)
    progress.collected(4)
    progress.begin -= 60
    progress.ended(Record.from_json(entry("now")))
    assert "about 6.3 minutes left" in capsys.readouterr().err  # three more of a minute, and 200 seconds


def test_an_interrupted_run_keeps_what_it_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = fake_checkout(tmp_path, good="assert True")

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    kept = bench._Keeper.add
    monkeypatch.setattr(bench._Keeper, "add", lambda self, record: (kept(self, record), interrupt()))
    with pytest.raises(KeyboardInterrupt):
        bench.run(["good"], root=root)
    (path,) = (root / "benchmarks" / "results").glob("*.json")
    assert len(Results.read(path).entries) == 1


def test_quick_numbers_are_not_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = fake_checkout(tmp_path, good="assert True")
    assert bench.run(quick=True, root=root) == 0
    assert "good kl" in capsys.readouterr().out
    assert not (root / "benchmarks" / "results").exists() and not (root / "docs").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["atention_map"], "no benchmark 'atention_map'; did you mean 'attention_map'?"),
        (["step", "--threads", "0"], "--threads: got 0, want 1 or more"),
        (["step", "--output", "nowhere/x.json"], "--output: no such directory: nowhere"),
        (["step", "--output", "README.md"], "README.md: cannot be read as results"),
        (["step", "--docs"], "--docs: got step, want no NAME: it measures nothing"),
    ],
)
def test_bad_input_ends_with_one_line(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(bench.subprocess, "run", lambda *_, **__: pytest.fail("nothing may run"))
    assert cli.main(["bench", *words]) == 2
    captured = capsys.readouterr()
    assert message in captured.err and captured.err.count("\n") == 1


def test_outside_of_a_checkout_it_says_where_to_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = tmp_path / "site-packages" / "bertxfer_fast" / "cli" / "bench.py"
    monkeypatch.setattr(importlib.import_module("bertxfer_fast.cli.bench"), "__file__", str(installed))
    monkeypatch.setattr(bench.subprocess, "run", lambda *_, **__: pytest.fail("nothing may run"))
    assert cli.main(["bench", "step"]) == 2
    assert "want a source checkout" in capsys.readouterr().err


def test_every_benchmark_has_tests_and_every_op_a_benchmark() -> None:
    found = bench.names(ROOT)
    for name in found:
        for path in bench.tests_of(name):
            assert (ROOT / path).is_file(), name
    ops = {path.parent.name for path in (ROOT / "bertxfer_fast" / "ops").glob("[!_]*/__init__.py")}
    assert ops - {"scale_grad"} <= set(found)
