"""What a run logs by objective reaches the trackers of transformers' ``report_to``, which are played here.

TensorBoard, which is at hand, is read back in `tests/cli/test_evaluate.py`.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest
from transformers.integrations import integration_utils

from bertxfer_fast import DistillationArguments, DistillationTrainer, Distiller, objectives

from ..tiny import tiny_pair


@pytest.mark.parametrize("tracker", ["trackio", "wandb"])
def test_every_objective_is_logged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tracker: str) -> None:
    played = MagicMock()
    played.context_vars.current_space_id.get.return_value = None  # of trackio: all stays on this machine
    for name in (tracker, "wandb.sdk", "wandb.sdk.lib", "wandb.sdk.lib.config_util"):
        monkeypatch.setitem(sys.modules, name, played)
    played.ConfigError = RuntimeError
    monkeypatch.setattr(integration_utils, f"is_{tracker}_available", lambda: True)
    teacher, student = tiny_pair()
    distiller = Distiller(teacher, student, [objectives.HiddenStates(), objectives.Logits()])
    rows: Any = [{"input_ids": [2, 5 + i, 3], "labels": i % 3} for i in range(4)]
    arguments = DistillationArguments(
        str(tmp_path),
        max_steps=2,
        logging_steps=1,
        eval_strategy="epoch",
        report_to=[tracker],
        save_strategy="no",
    )
    DistillationTrainer(distiller, arguments, train_dataset=rows, eval_dataset=rows).train()
    logged = [call.args[0] for call in played.log.call_args_list]
    for name in ("train/loss", "train/loss/hidden_states", "train/loss/logits"):
        assert sum(name in values for values in logged) == 2, name
    for name in ("eval/loss", "eval/loss/hidden_states", "eval/loss/logits", "eval/accuracy"):
        assert any(name in values for values in logged), name
    settings = played.config.update.call_args.args[0]
    assert settings["num_hidden_layers"] == student.config.num_hidden_layers and settings["max_steps"] == 2
