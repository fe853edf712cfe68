"""What was measured, as records: of one benchmark's case, and of all of a machine, which is one JSON file.

Nothing here measures, and nothing imports torch.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bertxfer_fast.errors import InputError

#: What `Record.tests` says of an operator whose tests passed where it was measured.
PASSED = "passed"

Key = tuple[str, str, str, str]


@dataclass(frozen=True)
class Measured:
    """One implementation in one case. Ratios are over our fastest backend: above 1, ours is faster, or smaller."""

    ms: float  # median
    quartiles: tuple[float, float]  # lower and upper, ms
    ratio: float
    memory_mb: float | None = None  # peak beyond what was there before, results included; 1 MB is 10**6 bytes
    memory_ratio: float | None = None
    memory_per_gradient: float | None = None  # memory over the gradients' size, 1 at best
    host_ms: float | None = None  # on a GPU: what the host needs to issue the call


@dataclass(frozen=True)
class Record:
    """One case of a benchmark, with all implementations that were measured in it."""

    op: str
    case: str
    shape: str
    dtype: str  # without "torch."
    ours: str  # the fastest of the backends that users get
    implementations: dict[str, Measured]
    length: int | None = None  # of the sequences, for plots
    valid: float = 1.0  # share of the padded batch's tokens that are real
    operator: str | None = None  # whose backends are chosen by the record (`ops._dispatch.choices`)
    size: int | None = None  # of the call, as those choices count it
    threads: int | None = None
    rounds: int = 0
    gradient_mb: float | None = None
    memory_note: str | None = None  # why there is no memory
    left_out: dict[str, str] = field(default_factory=dict)  # name -> why it was not measured
    gain: float | None = None  # ragged batches: time at full length over time packed
    ideal_gain: float | None = None
    seconds: float | None = None  # that measuring the case took
    tests: str | None = None  # on a GPU: PASSED, or what failed
    target_us: float | None = None  # what was set as a goal before it was measured

    @property
    def key(self) -> Key:
        """What makes two records ones of the same thing."""
        return self.op, self.case, self.shape, self.dtype

    @property
    def name(self) -> str:
        """The op with its case, for example ``attention_map kl``."""
        return f"{self.op} {self.case}".strip()

    @property
    def passed(self) -> bool:
        return self.tests == PASSED

    @property
    def floor(self) -> str | None:
        """The floor that takes longest: nobody can do without any of them."""
        floors = [name for name in self.implementations if name.startswith("floor: ")]
        return max(floors, key=lambda name: self.implementations[name].ms, default=None)

    @property
    def peer(self) -> str | None:
        """The fastest of other people's kernels."""
        peers = [name for name in self.implementations if name.startswith("peer: ")]
        return min(peers, key=lambda name: self.implementations[name].ms, default=None)

    def value(self, name: str | None, what: str) -> Any:
        """One number of one implementation, None where there is none."""
        found = self.implementations.get(name) if name is not None else None
        return None if found is None else getattr(found, what)

    def to_json(self) -> dict[str, Any]:
        return _without_defaults(self) | {
            "implementations": {name: _without_defaults(x) for name, x in self.implementations.items()}
        }

    @staticmethod
    def from_json(found: Mapping[str, Any]) -> Record:
        implementations = {
            name: Measured(**{**x, "quartiles": tuple(x["quartiles"])})
            for name, x in found["implementations"].items()
        }
        return Record(**{**found, "implementations": implementations})


def _without_defaults(record: Record | Measured) -> dict[str, Any]:
    """The fields as JSON has them; those that say nothing are left out."""
    shown = {}
    for known in dataclasses.fields(record):
        value = getattr(record, known.name)
        if value is not None and value != {}:
            shown[known.name] = value
    return shown


@dataclass
class Results:
    """What one machine measured."""

    machine: dict[str, Any]
    quick: bool  # tiny shapes: such numbers mean nothing
    entries: list[Record] = field(default_factory=list)

    @property
    def of_gpu(self) -> bool:
        return "gpu" in self.machine

    def same_conditions(self, other: Results) -> bool:
        return (self.machine, self.quick) == (other.machine, other.quick)

    def merged_into(self, old: Results | None) -> Results:
        """``old`` with these records in place of those of the same op, case, shape and dtype.

        Numbers made on another machine, by other versions or with tiny shapes do not stand beside new ones: ``old``
        goes.
        """
        kept = old.entries if old is not None and self.same_conditions(old) else []
        entries = {record.key: record for record in (*kept, *self.entries)}
        return Results(self.machine, self.quick, [entries[key] for key in sorted(entries)])

    def save(self, path: Path) -> Results:
        """Merges into the file; returns all that it has now."""
        merged = self.merged_into(Results.read(path) if path.exists() else None)
        written = {
            "machine": merged.machine,
            "quick": merged.quick,
            "entries": [record.to_json() for record in merged.entries],
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_name(
            f".{path.name}.new"
        )  # a run that is cut off leaves the old file or the new one
        beside.write_text(json.dumps(written, indent=1) + "\n", encoding="utf-8")
        beside.replace(path)
        return merged

    @staticmethod
    def read(path: Path) -> Results:
        """A file of results.

        Raises:
            InputError: it cannot be read, or is none.
        """
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise InputError(f"{path.name}: cannot be read as results: {error}") from None
        try:
            return Results(found["machine"], found["quick"], [Record.from_json(x) for x in found["entries"]])
        except (KeyError, TypeError) as error:
            raise InputError(f"{path.name}: is no file of results: {error}") from None


def results_file(root: Path, machine: Mapping[str, Any]) -> Path:
    """Where results of this machine are kept: named after the GPU, or the processor and its threads."""
    words = re.sub(r"\(r\)|\(tm\)|@.*", " ", str(machine.get("gpu") or machine["processor"]).lower())
    slug = "-".join(re.findall(r"[a-z0-9]+", words)) or "cpu"
    if "gpu" in machine:
        return root / "benchmarks" / "results" / f"{slug}.json"
    allocator = "-malloc" if machine["allocator"] else ""  # other numbers, beside those of the default
    return root / "benchmarks" / "results" / f"{slug}-{machine['threads']}threads{allocator}.json"


def seconds_of(records: Iterable[Record], op: str) -> float | None:
    """How long an earlier run took for all cases of a benchmark, None if it does not say."""
    taken = [record.seconds for record in records if record.op == op]
    return sum(x for x in taken if x) if taken and all(taken) else None
