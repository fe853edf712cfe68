"""Whether two tokenizers give the same ids."""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase

__all__ = ["check_tokenizers"]

# Text whose tokens differ when two tokenizers fold case, accents or spaces differently.
_PROBE = "Ünïted  States: it's 3.14% re-read, naïvely!"


def check_tokenizers(teacher: PreTrainedTokenizerBase, student: PreTrainedTokenizerBase) -> None:
    """Raise ValueError unless two tokenizers give the same ids: same vocabulary, same ids for a probe text."""
    vocabularies = teacher.get_vocab(), student.get_vocab()
    if vocabularies[0] != vocabularies[1]:
        differing = min(token for token, _ in vocabularies[0].items() ^ vocabularies[1].items())
        ids = [vocabulary.get(differing) for vocabulary in vocabularies]
        raise ValueError(
            f"student_tokenizer: got {len(vocabularies[1])} tokens, want the teacher's vocabulary "
            f"({len(vocabularies[0])} tokens); {differing!r} is {ids[0]} for the teacher and {ids[1]} for the student"
        )
    probes = teacher(_PROBE)["input_ids"], student(_PROBE)["input_ids"]
    if list(probes[0]) != list(probes[1]):
        raise ValueError(
            f"student_tokenizer: got {list(probes[1])} for {_PROBE!r}, want the teacher's {list(probes[0])}: the same "
            "vocabulary, but it cuts text differently (case, accents or special tokens)"
        )
