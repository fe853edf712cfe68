"""Facts of a run as results: one record for each problem, with all implementations that were measured in it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..results import PASSED, Key, Measured, Record, Results

Fact = Mapping[str, Any]
_OURS = ("triton", "cuda")


def results_of(facts: Sequence[Fact], *, quick: bool = False) -> Results | None:
    """Results of a run, which may have been cut off anywhere; None where it did not get to know the device.

    Of a problem that none of our backends was timed in there is no record, and one of our backends that was timed in
    vain, because a later check failed, is left out.
    """
    machines = [fact["machine"] for fact in facts if fact["kind"] == "device"]
    if not machines:
        return None
    grouped: dict[Key, list[Fact]] = {}
    for fact in facts:
        if fact["kind"] in ("time", "left out", "check") and not fact.get("build"):
            grouped.setdefault(tuple(fact["problem"]), []).append(fact)
    found = [_record(key, mine, failed_tests(facts)) for key, mine in grouped.items()]
    return Results(machines[-1], quick, [record for record in found if record is not None])


def failed_tests(facts: Iterable[Fact]) -> list[str]:
    return [fact["test"] for fact in facts if fact["kind"] == "test" and fact["outcome"] == "failed"]


def _record(key: Key, facts: Sequence[Fact], failed: Sequence[str]) -> Record | None:
    timed = {fact["implementation"]: fact for fact in facts if fact["kind"] == "time"}  # the last one counts
    wrong = [fact["backend"] for fact in facts if fact["kind"] == "check" and not fact["ok"]]
    timed = {name: fact for name, fact in timed.items() if name.split()[0] not in wrong}
    best = min((name for name in _OURS if name in timed), key=lambda name: timed[name]["ms"], default=None)
    if best is None:
        return None
    op, case, shape, dtype = key
    about = timed[best]
    whole = timed.get(f"{best} full length")
    return Record(
        op=op,
        case=case,
        shape=shape,
        dtype=dtype,
        ours=best,
        implementations={name: _measured(fact, about) for name, fact in timed.items()},
        **{
            name: about[name]
            for name in ("length", "valid", "operator", "size", "ideal_gain", "target_us", "rounds")
        },
        gradient_mb=_over(about["gradient_bytes"], 1e6),
        gain=whole["ms"] / about["ms"] if whole and about["ideal_gain"] else None,
        left_out={fact["implementation"]: fact["why"] for fact in facts if fact["kind"] == "left out"}
        | {name: "failed its check" for name in wrong},
        tests=_verdict(about["operator"] or op, failed),
    )


def _measured(fact: Fact, ours: Fact) -> Measured:
    gradient_mb = _over(fact["gradient_bytes"], 1e6)
    return Measured(
        ms=fact["ms"],
        quartiles=tuple(fact["quartiles"]),
        ratio=fact["ms"] / ours["ms"],
        memory_mb=fact["memory_mb"],
        memory_ratio=_over(fact["memory_mb"], ours["memory_mb"]),
        memory_per_gradient=_over(fact["memory_mb"], gradient_mb),
        host_ms=fact["host_ms"],
    )


def _over(value: float | None, other: float | None) -> float | None:
    return None if value is None or not other else value / other


def _verdict(operator: str, failed: Sequence[str]) -> str:
    """Its own check has passed, or it would not have been timed; failing tests of its operator count, too."""
    named = "attention_map" if operator == "attention_map_loss" else operator.removesuffix("_backward")
    mine = [test for test in failed if named in _without_longer(test, named)]
    return PASSED if not mine else f"{len(mine)} failed, first {mine[0]}"


def _without_longer(test: str, named: str) -> str:
    """``linear_logits_kl`` has ``logits_kl`` in it."""
    return test.replace("linear_logits_kl", "") if named == "logits_kl" else test
