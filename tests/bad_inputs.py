"""Bad inputs of commands: what is wrong, in words -> what brings it about, and what is said (a regular expression).

`test_bad_input` tries them.
"""

from __future__ import annotations

import atexit
import functools
import json
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml

from .folders import WORDS, change, make_place, tiny_tokenizer, write_tsv
from .tiny import tiny_bert


@functools.cache
def base() -> Path:
    """A folder of this process's own: `fresh` has all that a recipe needs."""
    folder = Path(tempfile.mkdtemp()).resolve()
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    make_place(folder / "fresh")
    return folder


# ---- what is broken -----------------------------------------------------------------------------------------


def other_tokenizer(place: Path) -> None:
    tiny_tokenizer(place / "tokenizer", words=[*WORDS[1:], WORDS[0]])
    change(place, tokenizer="tokenizer")


def other_case(place: Path) -> None:
    tiny_tokenizer(place / "tokenizer", lowercase=False)
    change(place, tokenizer="tokenizer")


def own_tokenizer(**changes: Any) -> Callable[[Path], None]:
    """The student reads other tokens than its teacher."""

    def build(place: Path) -> None:
        tiny_tokenizer(place / "own", words=[*WORDS[1:], WORDS[0]])
        change(place, **changes)
        recipe = yaml.safe_load((place / "recipe.yaml").read_text())
        student = recipe["student"]
        change(
            place,
            student={**({"path": student} if isinstance(student, str) else student), "tokenizer": "own"},
        )

    return build


def student_with(**settings: Any) -> Callable[[Path], None]:
    def build(place: Path) -> None:
        settings.setdefault("head", "ForSequenceClassification")
        tiny_bert(**{"layers": 2, "hidden": 12, "heads": 4, **settings}).save_pretrained(place / "small")
        change(place, student="small")

    return build


def teacher_without_head(place: Path) -> None:
    shutil.rmtree(place / "teacher")
    tiny_bert(4, 16, 4).save_pretrained(place / "teacher")
    tiny_tokenizer(place / "teacher")
    change(place, task="sequence-classification")


def torn_weights(place: Path) -> None:
    (place / "teacher" / "model.safetensors").write_bytes(b"torn")


def binary_data(place: Path) -> None:
    (place / "train.tsv").write_bytes(bytes(range(256)) * 4)


def no_rows(place: Path) -> None:
    (place / "train.tsv").write_text("sentence\tlabel\n")


def unknown_label(place: Path) -> None:
    write_tsv(place / "dev.tsv", [("good film", "meh")])


def missing_text(place: Path) -> None:
    write_tsv(place / "train.tsv", [("good film", "pos"), ("", "neg"), ("bad", "neutral")])


def other_model_there(place: Path) -> None:
    (place / "out").mkdir()
    (place / "out" / "config.json").write_text("{}")


def token_classifier(**row: Any) -> Callable[[Path], None]:
    """A teacher that tags words, and one row of training data."""

    def build(place: Path) -> None:
        tiny_bert(4, 16, 4, head="ForTokenClassification").save_pretrained(place / "teacher")
        (place / "train.jsonl").write_text(json.dumps(row))
        change(place, data={"train": "train.jsonl", "text": "words", "label": "tags"})

    return build


def multi_label(place: Path) -> None:
    settings = {"problem_type": "multi_label_classification"}
    tiny_bert(4, 16, 4, head="ForSequenceClassification", **settings).save_pretrained(place / "teacher")
    change(place, task="sequence-classification")


def masked_lm(place: Path) -> None:
    tiny_bert(4, 16, 4, head="ForMaskedLM").save_pretrained(place / "teacher")


def write(name: str, content: str | bytes) -> Callable[[Path], None]:
    """Overwrite a file of the place."""

    def do(place: Path) -> None:
        (place / name).write_bytes(content if isinstance(content, bytes) else content.encode())

    return do


def remove(name: str) -> Callable[[Path], None]:
    return lambda place: (place / name).unlink()


def sets(**changes: Any) -> Callable[[Path], None]:
    return lambda place: change(place, **changes)


def config_of_teacher(**changes: Any) -> Callable[[Path], None]:
    def do(place: Path) -> None:
        path = place / "teacher" / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return do


def causal_teacher(place: Path) -> None:
    config_of_teacher(is_decoder=True)(place)


def albert_teacher(place: Path) -> None:
    config = dict(family="Albert", head="ForSequenceClassification", embedding_size=8)
    tiny_bert(4, 16, 4, **config).save_pretrained(place / "teacher")


def jsonl(*rows: dict[str, Any]) -> str:
    return "".join(f"{json.dumps(row)}\n" for row in rows)


def both(*steps: Callable[[Path], Any]) -> Callable[[Path], None]:
    def do(place: Path) -> None:
        for step in steps:
            step(place)

    return do


def unfinished(place: Path) -> None:
    """The last stage is left with its checkpoint alone, as a run that was stopped leaves it."""
    for file in [*(place / "out").glob("*.*"), *(place / "out" / "prediction").glob("*.*")]:
        if file.is_file() and file.name != "run.json":
            file.unlink()


def nothing(_place: Path) -> None:
    """The input is wrong, not the place."""


def without_tokenizer(place: Path) -> None:
    for file in (place / "teacher").iterdir():
        if "token" in file.name or "vocab" in file.name:
            file.unlink()


def small_vocabulary(place: Path) -> None:
    tiny_bert(4, 16, 4, vocab=20, head="ForSequenceClassification").save_pretrained(place / "teacher")


# ---- the table: input in words -> (what does it, what is said) ----------------------------------------------

Command = tuple[Callable[[Path], Any], str]

RECIPES: dict[str, Command] = {
    "no recipe file": (remove("recipe.yaml"), "cannot read"),
    "a recipe that is no YAML": (
        write("recipe.yaml", "recipe: [tinybert\n"),
        r"not valid YAML: expected ',' or '\]', but got '<stream end>'",
    ),
    "a recipe that is a list": (
        write("recipe.yaml", "- recipe: tinybert\n"),
        r"recipe\.yaml: got a list, want a mapping of keys to values",
    ),
    "an empty recipe": (write("recipe.yaml", ""), r"recipe\.yaml: required key 'recipe' is missing"),
    "a recipe in Latin-1": (
        write("recipe.yaml", b"recipe: caf\xe9"),
        r"cannot read the recipe recipe\.yaml: it is not UTF-8 text",
    ),
    "a key written twice": (
        write("recipe.yaml", "recipe: tinybert\nrecipe: minilm\n"),
        "key 'recipe' is written twice, first on line 1",
    ),
    "a key that is a number": (write("recipe.yaml", "1: tinybert\n"), "key: got 1, want text"),
    "a required key left out": (sets(output_dir=None), r"recipe\.yaml: required key 'output_dir' is missing"),
    "no teacher for a recipe that learns from one": (
        sets(teacher=None),
        r"recipe\.yaml, line 1: required key 'teacher' is missing: recipe 'tinybert' learns from one",
    ),
    "sizes of a student and no teacher": (
        sets(teacher=None, recipe="finetune", stages=None),
        "student: got sizes and no teacher, want a directory",
    ),
    "a recipe of vocabularies for a classifier": (
        sets(recipe="distilbert", stages=None),
        "stage distillation: logits: got BertForSequenceClassification as student, want a masked-LM model",
    ),
    "relation heads that do not divide": (
        sets(recipe="minilmv2", stages=None),
        "relations: heads: got 48, want a divisor of the student's width 12",
    ),
    "a kind of student that there is not": (
        sets(student={"kind": "bilstmm"}),
        r"recipe\.yaml, line \d+ \(section student\): student: got 'bilstmm', want a known one; did you mean 'bilstm'",
    ),
    "an option that a kind of student has not": (
        sets(student={"kind": "bilstm", "num_attention_heads": 4}),
        r"unknown key 'num_attention_heads' beside this kind",
    ),
    "no training file": (sets(data__train=None), r"recipe\.yaml: required key 'data\.train' is missing"),
    "no student": (
        sets(student=None),
        r"recipe\.yaml: 'student' is missing: give a directory, or a section with a size, num_hidden_layers or a kind",
    ),
    "a section that is a value": (sets(data="train.tsv"), r"data: got 'train\.tsv', want a section of keys"),
    "an empty path": (sets(teacher=""), "teacher: got an empty text, want a path"),
    "text for a number": (
        sets(training__learning_rate="fast"),
        "learning_rate: got text: 'fast', want a number",
    ),
    "a fraction for a whole number": (sets(seed=1.5), r"seed: got a number: 1\.5, want a whole number"),
    "an unknown choice": (
        sets(student__init="techer"),
        r"student\.init: got 'techer', want one of teacher, random",
    ),
    "an unknown task": (
        sets(task="sequence-clasification"),
        "task: got 'sequence-clasification', want one of sequence-classification,",
    ),
    "a maximum length of 0": (sets(data__max_length=0), "max_length: got 0, want 1 or more"),
    "a maximum length without room for text": (
        sets(data__max_length=2),
        r"train\.tsv: max_length: got 2, want more than the 2 special tokens: no room is left for text",
    ),
    "a feature of Trainer that changes the loss": (
        sets(training__label_smoothing_factor=0.1),
        r"stage intermediate: label_smoothing_factor: got 0\.1, want it left out of a distillation;",
    ),
    "an unknown sampling strategy": (
        sets(training__train_sampling_strategy="shuffle"),
        "stage intermediate: train_sampling_strategy: got 'shuffle', want one of random,",
    ),
    "a token budget of 0": (
        sets(training__tokens_per_batch=0),
        "stage intermediate: tokens_per_batch: got 0, want 1 or more",
    ),
    "an unknown scheduler": (
        sets(training__lr_scheduler_type="wobbly"),
        "lr_scheduler_type: got 'wobbly', want one of linear, cosine, cosine_with_restarts, polynomial,",
    ),
    "an unknown optimizer": (
        sets(training__optim="adam2"),
        "optim: got 'adam2', want one of adamw_torch, adamw_torch_fused, adamw_torch_xla,",
    ),
    "two precisions": (
        sets(training__bf16=True, training__fp16=True),
        "stage intermediate: At most one of fp16 and bf16 can be True, but not both",
    ),
    "a best model that is never saved": (
        sets(training__load_best_model_at_end=True, training__save_strategy="steps", training__save_steps=3),
        "stage intermediate: --load_best_model_at_end requires the save and eval strategy to match,",
    ),
    "an unknown logger": (sets(training__report_to="nothing"), "^stage intermediate: .*nothing"),
    "a batch size of 0": (
        sets(training__per_device_train_batch_size=0),
        "per_device_train_batch_size: got 0, want 1 or more",
    ),
    "a share of heads that is none of them": (
        sets(training__prune_heads=0.01),
        r"stage intermediate: prune_heads: got 0\.01 of the 4 heads of BertForSequenceClassification, which is none,",
    ),
    "labels that no column has": (
        lambda p: change(p, recipe="finetune", stages={}, data__label=None),
        "stage finetuning: required key 'data.label' is missing: recipe 'finetune' learns from labels",
    ),
    "a learning rate below 0": (
        sets(training__learning_rate=-1),
        r"stage intermediate: learning_rate: got -1\.0, want a number from 0",
    ),
    "a decay that is no number": (
        sets(training__adam_beta2=float("nan")),
        "stage intermediate: adam_beta2: got nan, want 0 or more and less than 1",
    ),
    "an epoch count below 0": (sets(training__num_train_epochs=-1), r"num_train_epochs: got -1\.0, want"),
    "a negative seed": (sets(seed=-1), "seed: got -1, want 0 to"),
    "an output_dir inside a file": (
        sets(output_dir="train.tsv/out"),
        r"\[Errno 20\] Not a directory: 'train\.tsv/out'",
    ),
    "an unknown key": (lambda p: change(p, techer="x"), "unknown key 'techer'; did you mean 'teacher'"),
    "an unknown recipe": (
        lambda p: change(p, recipe="tinybrt"),
        "recipe: got 'tinybrt', want a known one; did you mean 'tinybert'",
    ),
    "an unknown option": (lambda p: change(p, options__temprature=2), "did you mean 'temperature'"),
    "an option out of range": (
        lambda p: change(p, options__temperature=-1),
        "temperature: got -1, want a positive number",
    ),
    "a seed for one stage": (lambda p: change(p, stages__predict__seed=1), "seed cannot be set here"),
    "an unknown stage": (
        lambda p: change(p, stages__predict={"max_steps": 1}),
        "did you mean 'prediction'",
    ),
    "a training value out of range": (
        lambda p: change(p, training__warmup_steps=-1),
        "stage intermediate: .*warmup_steps",
    ),
    "an evaluation without a dev file": (
        lambda p: change(p, data__eval=None, training__eval_strategy="epoch"),
        "stage intermediate: eval_strategy: got 'epoch' without data.eval",
    ),
    "a metric that nobody measures": (
        lambda p: change(p, training__load_best_model_at_end=True, training__metric_for_best_model="f1"),
        "metric_for_best_model: got 'f1', want one that is measured here: loss, loss/attention_scores",
    ),
    "no such file of the teacher's numbers": (
        lambda p: change(p, teacher="vectors.npy"),
        r"line 2: teacher: no such file: vectors\.npy",
    ),
    "no such teacher": (lambda p: change(p, teacher="techer"), r"line 2: teacher: no such directory"),
    "a folder that is no model": (lambda p: change(p, teacher="."), "not a transformers model"),
    "no such file": (
        lambda p: change(p, data__test="tst.tsv"),
        r"\(section data\): no such file: .*tst\.tsv",
    ),
    "no such column": (
        lambda p: change(p, data__text="sentense"),
        "no column 'sentense'; did you mean 'sentence'",
    ),
    "no such label column": (
        lambda p: change(p, data__label="lable"),
        "no column 'lable'; did you mean 'label'",
    ),
    "a file with a header alone": (no_rows, r"train\.tsv.*no rows"),
    "a row without text": (
        missing_text,
        "empty_rows: got no 'sentence' in row 2, want complete rows, or one of skip, keep",
    ),
    "a label that training never saw": (
        unknown_label,
        r"dev\.tsv: column 'label', row 1: 'meh' is not in label2id",
    ),
    "a tokenizer with other ids": (
        other_tokenizer,
        "tokens, want the teacher's vocabulary",
    ),
    "a tokenizer that cuts text differently": (other_case, "cuts text differently"),
    "a student's own tokenizer that is not there": (
        sets(student__tokenizer="tokens"),
        r"\(section student\): .*tokens",
    ),
    "a student's own tokenizer and a recipe of attention": (
        own_tokenizer(),
        "stage intermediate: teacher: got attention 1 to match with a student that has other tokens, want hidden",
    ),
    "a student's own tokenizer and no teacher": (
        both(student_with(), own_tokenizer(recipe="finetune", teacher=None, stages={}, student="small")),
        r"student\.tokenizer: got one beside no teacher, want tokenizer: no other model reads here",
    ),
    "a student's own tokenizer and rows": (
        both(own_tokenizer(recipe="logits", teacher="train.npy"), write("train.npy", b"")),
        r"student\.tokenizer: got one beside rows, which have none, want tokenizer",
    ),
    "a student's own tokenizer and a blend": (
        own_tokenizer(student__init="blend"),
        r"student\.tokenizer: got one with init: blend, want init: teacher or random",
    ),
    "a student's own tokenizer and masked tokens": (
        both(masked_lm, own_tokenizer(recipe="distilbert", stages={})),
        r"student\.tokenizer: got one for task 'masked-lm', want none: the labels of that task are tokens",
    ),
    "a student's own tokenizer, of which it has too few ids": (
        both(student_with(vocab=20), own_tokenizer(recipe="logits", stages={}, student="small")),
        r"line \d+ \(section student\): the tokenizer gives ids up to 49, the student's vocabulary has 20",
    ),
    "a student of another vocabulary": (student_with(vocab=60), "got vocab_size 60 and 50 of the teacher"),
    "a student with other head counts": (
        lambda p: change(p, student__num_attention_heads=3),
        "attention_scores: got 3 heads of the student and 4 of the teacher",
    ),
    "a saved student with other head counts": (
        student_with(heads=2),
        "got 2 heads of the student and 4 of the teacher, want equal head counts",
    ),
    "a student with other classes": (
        student_with(num_labels=2),
        "head with 2 labels and a teacher .*want .* as many labels",
    ),
    "a file with other classes than the teacher's": (
        lambda p: write_tsv(p / "train.tsv", [("good", "a"), ("bad", "b")]),
        r"column 'label' has 2 classes \(a, b\), the teacher 3",
    ),
    "a depth that does not divide the teacher's": (
        lambda p: change(p, student__num_hidden_layers=3),
        "got 3 of the student and 4 of the teacher",
    ),
    "another width with the teacher's weights": (
        lambda p: change(p, student__init="teacher"),
        "got hidden_size=12, want the teacher's hidden_size=16",
    ),
    "a teacher with torn weights": (torn_weights, "line 2: .*teacher: its weights cannot be read"),
    "a file of binary data": (binary_data, r"train\.tsv.*cannot be read"),
    "a teacher without a trained head": (
        teacher_without_head,
        "no trained weights for task 'sequence-classification'",
    ),
    "a task that is not the head's": (
        lambda p: change(p, task="regression"),
        "task: got 'regression', want 'sequence-classification': the teacher's head does that",
    ),
    "soft labels without a head": (
        lambda p: change(p, task="none", data__label=None),
        "stage prediction: logits: got BertModel as student, want a classification",
    ),
    "soft labels for task none": (
        lambda p: change(p, task="none"),
        "logits: got BertModel as student, want a classification",
    ),
    "another task of the same class": (
        multi_label,
        "task: got 'sequence-classification', want 'multi-label-classification': the teacher's head does that",
    ),
    "a column for masked words": (masked_lm, "label: got 'label' for task 'masked-lm', want it left out"),
    "text instead of words": (
        token_classifier(words="good film", tags=["A", "B", "C"]),
        r"train\.jsonl: text: got .* labels for every token want a column of lists of words",
    ),
    "one tag for a list of words": (
        token_classifier(words=["good", "film"], tags="A"),
        "column 'tags' has 1 classes",
    ),
    "tags that are too many": (
        token_classifier(words=["good", "film"], tags=["A", "B", "C"]),
        r"train\.jsonl: column 'tags', row 1: 3 labels for 2 words",
    ),
    "a maximum length beyond the tokenizer's": (
        lambda p: change(p, data__max_length=500),
        "max_length: got 500, want at most the tokenizer's",
    ),
    "a token budget below a text": (
        lambda p: change(p, training__tokens_per_batch=5),
        "tokens_per_batch: got 5, want at least the .* tokens of a sequence in train",
    ),
    "an output_dir that is a file": (lambda p: change(p, output_dir="train.tsv"), r"train\.tsv is a file"),
    "an output_dir of something else": (other_model_there, r"holds config\.json of something else"),
}

FLAGS: dict[str, tuple[Sequence[str], str]] = {
    "an unknown flag": (
        ["--data.tran", "x.tsv"],
        r"flag --data\.tran: unknown key 'data\.tran'; did you mean 'train'\?",
    ),
    "a word that is no flag": (
        ["train.tsv"],
        r"flags: got 'train\.tsv', want a flag such as --data\.train FILE",
    ),
    "a flag given twice": (["--seed", "1", "--seed", "2"], "flag --seed is given twice"),
    "a flag that is neither true nor false": (
        ["--training.bf16", "maybe"],
        r"flag --training\.bf16: bf16: got text: 'maybe', want true or false",
    ),
    "a flag whose number is cut off": (
        ["--training.learning_rate", "1e"],
        r"flag --training\.learning_rate: learning_rate: got text: '1e', want a number",
    ),
    "a flag with a file that is not there": (
        ["--data.train", "/nowhere/train.tsv"],
        r"flag --data\.train: no such file: /nowhere/train\.tsv",
    ),
}

FILES: dict[str, Command] = {
    "a kind of file that is not read": (
        both(write("train.xlsx", "x"), sets(data__train="train.xlsx")),
        r"source: got 'train\.xlsx', want a name that ends in one of \.csv, \.tsv, \.json, \.jsonl, \.parquet,",
    ),
    "an empty file": (write("train.tsv", ""), r"'train\.tsv' is an empty file"),
    "an empty dev file": (write("dev.tsv", "sentence\tlabel\n"), r"dev\.tsv: 'dev\.tsv' cannot be read"),
    "a row with more fields than the header": (
        write("train.tsv", "sentence\tlabel\ngood\tpos\textra\tmore\n"),
        r"train\.tsv' cannot be read",
    ),
    "a directory for a file": (
        both(lambda p: (p / "d.tsv").mkdir(), sets(data__train="d.tsv")),
        r"no such file: d\.tsv",
    ),
    "JSON lines that end in the middle": (
        both(
            write("train.jsonl", '{"sentence": "good", "label": "pos"}\n{"sentence": "ba'),
            sets(data__train="train.jsonl"),
        ),
        r"train\.jsonl' cannot be read",
    ),
    "a parquet file that is none": (
        both(write("train.parquet", "PAR1"), sets(data__train="train.parquet")),
        r"train\.parquet' cannot be read",
    ),
    "a text column of numbers": (
        both(
            write("train.jsonl", jsonl(*({"sentence": 1, "label": x} for x in ("neg", "neutral", "pos")))),
            sets(data__train="train.jsonl"),
        ),
        r"column 'sentence': got Value\('int64'\), want text or lists of words",
    ),
    "a class that is a fraction": (
        both(write("train.jsonl", '{"sentence": "good", "label": 0.5}\n'), sets(data__train="train.jsonl")),
        r"0\.5 is no class label: a number to predict is task='regression'",
    ),
    "a missing second text": (sets(data__text_pair="sentence2"), r"train\.tsv: no column 'sentence2'"),
    "a file of rows without text": (
        lambda p: write_tsv(p / "train.tsv", [("", "pos"), ("", "neg"), ("", "neutral")]),
        "no 'sentence' in rows 1, 2, 3, want complete rows, or one of skip, keep",
    ),
}

MODELS: dict[str, Command] = {
    "a config.json that is no JSON": (
        write("teacher/config.json", "{"),
        "tokenizer: the tokenizer in teacher cannot be read",
    ),
    "a config.json of an unknown family": (
        config_of_teacher(model_type="brt"),
        "The checkpoint you are trying to load has model type `brt` but Transformers does not recognize",
    ),
    "a config.json without a family": (
        write("teacher/config.json", "{}"),
        r"Unrecognized model in teacher\. Should have a `model_type` key in its config\.json\.",
    ),
    "a config.json of another size": (
        config_of_teacher(hidden_size=32),
        "teacher: its weights cannot be read",
    ),
    "a config.json with other head counts": (
        config_of_teacher(num_attention_heads=5),
        r"The hidden size \(16\) is not a multiple of the number of attention heads \(5\)",
    ),
    "no weights": (
        remove("teacher/model.safetensors"),
        r"Error no file named model\.safetensors, or pytorch_model\.bin, found in directory teacher\.",
    ),
    "a decoder for a teacher": (
        causal_teacher,
        "stage intermediate: model: got BertForSequenceClassification, which is a decoder, want an",
    ),
    "a teacher that shares its layers": (
        albert_teacher,
        r"stage intermediate: model: got AlbertModel, which has no list of 2 layers of their own \(does",
    ),
    "no tokenizer": (without_tokenizer, "tokenizer: there is no tokenizer in teacher"),
    "a torn tokenizer": (
        write("teacher/tokenizer.json", "{"),
        "tokenizer: the tokenizer in teacher cannot be read",
    ),
    "a tokenizer of another model": (
        small_vocabulary,
        "tokenizer: the tokenizer gives ids up to 49, the teacher's vocabulary has 20; is it another",
    ),
    "a tokenizer directory that is not there": (
        sets(tokenizer="tokeniser"),
        "tokenizer: no such directory: tokeniser",
    ),
    "a student directory that is not there": (sets(student="smal"), "student: no such directory: smal"),
    "a student with sizes beside it": (
        both(student_with(), sets(student={"path": "small", "num_hidden_layers": 2})),
        "student is a directory; num_hidden_layers cannot be set beside it",
    ),
    "a student with few positions": (
        student_with(max_positions=8),
        r"train has a sequence of 11 tokens, the student 8 positions; set data\.max_length to 8 or less",
    ),
    "a student with torn weights": (
        both(student_with(), write("small/model.safetensors", b"torn")),
        "small: its weights cannot be read",
    ),
    "a student whose width its heads do not divide": (
        sets(student__hidden_size=13),
        "hidden_size: got 13, want a multiple of num_attention_heads=4",
    ),
    "a student without layers": (
        sets(student__num_hidden_layers=0),
        "num_hidden_layers: got 0, want 1 to the teacher's 4",
    ),
    "layers to copy that the teacher does not have": (
        sets(student={"num_hidden_layers": 2, "layers": [0, 9]}),
        r"layers: got \[0, 9\], want num_hidden_layers=2 numbers from 0 to 3",
    ),
}

CONTINUED: dict[str, Command] = {
    "another training file": (
        lambda p: write_tsv(p / "train.tsv", [("good film", "pos")]),
        r"out holds a run that differs \(content of\.train\)",
    ),
    "another setting": (
        sets(training__learning_rate="1e-4"),
        r"out holds a run that differs \(training\.learning_rate\)",
    ),
    "a teacher that changed in place": (
        config_of_teacher(layer_norm_eps=1e-6),
        r"out holds a run that differs \(content of\.teacher\)",
    ),
    "a teacher of which the student is to read other tokens": (
        own_tokenizer(),
        r"out holds a run that differs \(content of\.student\.tokenizer\)",
    ),
    "a torn record of the run": (write("out/run.json", "{"), r"run\.json:"),
    "a record of the run that is a list": (write("out/run.json", "[]"), r"run\.json: got a list, want"),
    "a torn record of a stage": (
        write("out/intermediate/stage.json", '{"stage":'),
        r"intermediate/stage\.json: ",
    ),
    "torn weights of a finished stage": (
        write("out/intermediate/model.safetensors", b"torn"),
        "^stage intermediate.*its weights cannot be read",
    ),
    "a finished stage without its weights": (
        remove("out/intermediate/model.safetensors"),
        r"^stage intermediate.*no file named model\.safetensors",
    ),
    "a torn checkpoint": (
        both(unfinished, write("out/prediction/checkpoint-3/model.safetensors", b"torn")),
        r"checkpoint-3/model\.safetensors cannot be read",
    ),
    "a torn optimizer in a checkpoint": (
        both(unfinished, write("out/prediction/checkpoint-3/optimizer.pt", b"torn")),
        r"checkpoint-3/optimizer\.pt cannot be read",
    ),
    "a finished stage without its config.json": (
        remove("out/intermediate/config.json"),
        r"^stage intermediate.*config\.json",
    ),
}


EVALUATE = ["evaluate", "{place}/teacher", "--data", "{place}/test.tsv", "--text", "sentence"]
AUGMENT = [
    "augment",
    "{place}/train.tsv",
    "--model",
    "{place}/teacher",
    "--text",
    "sentence",
    "--output",
    "{place}/more.tsv",
]
EXTRACT = [
    "extract",
    "{place}/teacher",
    "--input",
    "{place}/dev.tsv",
    "--text",
    "sentence",
    "--output",
    "{place}/f.npy",
]
COMMANDS: dict[str, tuple[Callable[[Path], Any], Sequence[str], str]] = {
    "extract: layers that are no numbers": (
        nothing,
        [*EXTRACT, "--layers", "last"],
        "--layers: got 'last', want whole numbers with commas",
    ),
    "extract: a layer that is not there": (
        nothing,
        [*EXTRACT, "--layers", "7"],
        r"layers: got 7, want hidden states 0\.\.4 \(or -1, -2, \.\.\.\)",
    ),
    "extract: a layer twice": (
        nothing,
        [*EXTRACT, "--layers=4,-1"],
        r"layers: got \[4, -1\], want each layer once",
    ),
    "extract: an unknown pooling": (
        nothing,
        [*EXTRACT, "--pooling", "median"],
        "pooling: got 'median', want one of mean, cls, max, mean_sqrt",
    ),
    "extract: a length without room for text": (
        nothing,
        [*EXTRACT, "--max-length", "1"],
        "max_length: got 1, want more than the 2 special tokens: no room is left for text",
    ),
    "extract: a length beyond the positions": (
        nothing,
        [*EXTRACT, "--max-length", "500"],
        "max_length: got 500, want at most the 64 positions of the",
    ),
    "extract: a token budget of 0": (
        nothing,
        [*EXTRACT, "--tokens-per-batch", "0"],
        "tokens_per_batch: got 0, want 1 or more",
    ),
    "extract: an output of an unknown kind": (
        nothing,
        [*EXTRACT, "--output", "{place}/f.txt"],
        r"--output: got 'f\.txt', want a name ending in \.npy, \.safetensors, \.csv",
    ),
    "extract: an output in no directory": (
        nothing,
        [*EXTRACT, "--output", "{place}/out/f.npy"],
        r"--output: got 'out/f\.npy', want a file in a directory: no such directory: out",
    ),
    "extract: an output that is a directory": (
        lambda p: (p / "f.npy").mkdir(),
        EXTRACT,
        r"--output: got 'f\.npy', want a file: this is a directory",
    ),
    "extract: an output that is the input": (
        write("t.csv", "text\ngood film\n"),
        [*EXTRACT, "--input", "{place}/t.csv", "--text", "text", "--output", "{place}/t.csv"],
        r"--output: got 't\.csv', a file that is read, want another",
    ),
    "extract: an output that is the model": (
        nothing,
        [*EXTRACT, "--output", "{place}/teacher/model.safetensors"],
        r"--output: got 'teacher/model\.safetensors', a file that is read, want another",
    ),
    "extract: no such input": (
        nothing,
        [*EXTRACT, "--input", "{place}/devv.tsv"],
        r"no file 'devv\.tsv' \(data is read from local files only\)",
    ),
    "extract: no such column": (nothing, [*EXTRACT, "--text", "sentense"], "no column 'sentense'"),
    "extract: no such model": (
        nothing,
        [EXTRACT[0], "{place}/techer", *EXTRACT[2:]],
        "model: no such directory: techer",
    ),
    "extract: a model without a tokenizer": (
        without_tokenizer,
        EXTRACT,
        "tokenizer: there is no tokenizer in teacher",
    ),
    "extract: torn weights": (torn_weights, EXTRACT, "teacher: its weights cannot be read"),
    "extract: no weights": (
        remove("teacher/model.safetensors"),
        EXTRACT,
        r"Error no file named model\.safetensors, or pytorch_model\.bin, found in directory teacher\.",
    ),
    "extract: weights of another size": (
        config_of_teacher(hidden_size=32),
        EXTRACT,
        "teacher: its weights cannot be read",
    ),
    "extract: a decoder": (
        causal_teacher,
        EXTRACT,
        "model: got BertModel, which is a decoder, want an encoder",
    ),
    "extract: a missing text": (
        lambda p: write_tsv(p / "dev.tsv", [("good", "pos"), ("", "neg")]),
        EXTRACT,
        "empty_rows: got no 'sentence' in row 2, want complete rows, or one of skip, zeros, keep",
    ),
    "extract: ids beyond the model's vocabulary": (
        small_vocabulary,
        EXTRACT,
        r"got 23 \(the token 'very'\) in input_ids, want ids 0\.\.19",
    ),
    "bench: an unknown name": (nothing, ["bench", "atention_map"], "bench: no benchmark 'atention_map'"),
    "bench: names beside --docs": (
        nothing,
        ["bench", "step", "--docs"],
        "--docs: got step, want no NAME: it measures nothing",
    ),
    "bench: no threads": (nothing, ["bench", "step", "--threads", "0"], "--threads: got 0, want 1 or more"),
    "evaluate: a column that is not there": (
        nothing,
        [*EVALUATE, "--label", "lable"],
        "no column 'lable'; did you mean 'label'",
    ),
    "evaluate: labels that the model has no names for": (
        nothing,
        [*EVALUATE, "--label", "label"],
        "'neutral' is not in label2id; known: LABEL_0, LABEL_1, LABEL_2",
    ),
    "evaluate: another task than the model's": (
        nothing,
        [*EVALUATE, "--task", "regression"],
        "task: got 'regression', want 'sequence-classification': the model's head does that",
    ),
    "evaluate: predictions without labels": (
        nothing,
        [*EVALUATE, "--predictions", "{place}/p.csv"],
        "--predictions: got a file without --label, want the column to compare with",
    ),
    "evaluate: predictions over the data": (
        nothing,
        [*EVALUATE, "--label", "label", "--predictions", "{place}/teacher/../test.tsv"],
        r"--predictions: got 'teacher/\.\./test\.tsv', a file that is read, want another",
    ),
    "evaluate: results over the label map": (
        write("map.json", '{"neg": 0, "neutral": 1, "pos": 2}'),
        [*EVALUATE, "--label", "label", "--label-map", "{place}/map.json", "--output", "{place}/map.json"],
        r"--output: got 'map\.json', a file that is read, want another",
    ),
    "evaluate: a confidence in percent": (
        nothing,
        [*EVALUATE, "--confidence", "95"],
        r"--confidence: got 95\.0, want a number between 0 and 1",
    ),
    "augment: an unknown method": (
        nothing,
        [*AUGMENT, "--method", "tinybrt"],
        "method: got 'tinybrt', want a known one; did you mean 'tinybert'",
    ),
    "augment: an unknown option": (
        nothing,
        [*AUGMENT, "--method", "masking", "--option", "prob=0.1"],
        "method masking: got option 'prob', want a known one",
    ),
    "augment: a probability in percent": (
        nothing,
        [*AUGMENT, "--method", "masking", "--option", "p=10"],
        "p: got 10, want a number from 0 to 1",
    ),
    "augment: a masked LM that is not there": (
        nothing,
        [*AUGMENT, "--method", "tinybert", "--option", "source=masked-lm"],
        "source: got 'masked-lm', want 'embeddings': the model has no trained masked-LM head",
    ),
    "augment: an output that is there": (
        nothing,
        [*AUGMENT, "--method", "masking", "--output", "{place}/dev.tsv"],
        r"--output: got 'dev\.tsv', want a new file: there is something",
    ),
    "augment: no copies": (
        nothing,
        [*AUGMENT, "--method", "ngrams", "--copies", "0"],
        "copies: got 0, want a whole number from 1",
    ),
    "augment: a list of words that is not there": (
        nothing,
        [*AUGMENT, "--method", "words", "--option", "words={place}/list.tsv"],
        r"words: no such file: .*list\.tsv",
    ),
    "augment: a text with a tab into a tsv": (
        write("rows.jsonl", '{"sentence": "good\\tfilm"}\n'),
        ["augment", "{place}/rows.jsonl", *AUGMENT[2:], "--method", "masking"],
        r"output: got 'more\.tsv' for column 'sentence', row 1, which has a tab or a line break",
    ),
    "compare: a folder that is no run": (
        nothing,
        ["compare", "{place}/teacher"],
        r"runs: got teacher, want a folder with a results\.json, or such a file",
    ),
    "compare: results that are none": (
        write("results.json", "{}"),
        ["compare", "{place}/results.json"],
        r"runs: got results\.json with something else in it, want results of format 1",
    ),
}

# Environment variables -> what a command says.
ENVIRONMENTS: dict[str, tuple[dict[str, str], str]] = {
    "BERTXFER_BACKEND is unknown": ({"BERTXFER_BACKEND": "cudda"}, "^environment variable BERTXFER_"),
    "BERTXFER_BACKEND is empty": ({"BERTXFER_BACKEND": ""}, "^environment variable BERTXFER_"),
    "BERTXFER_ISA is unknown": ({"BERTXFER_ISA": "avx3"}, "^environment variable BERTXFER_"),
}
