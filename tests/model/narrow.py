"""How far off Transformers is in bfloat16, which is how far off a decoder in that type may be."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from tests.model.agreement import TOKENS, expected, random_model


@dataclass(frozen=True)
class InBfloat16:
    """A model whose weights are exact in bfloat16, and how far off Transformers is in that type: the usual token, the
    worst."""

    path: Path
    model: Any
    experts: bool
    usual: float
    worst: float

    def near(self, actual: torch.Tensor, wanted: torch.Tensor) -> None:
        """No further off than Transformers, give or take. A token whose experts nearly tie may take others, and then
        what follows is off, too: of such models only many tokens have a usual error."""
        error = errors(actual, wanted)
        if len(error) >= (64 if self.experts else 16):
            assert error.median() < 2 * self.usual + 0.01
        if not self.experts:
            assert error.max() < 2 * self.worst + 0.02
        else:
            assert error.median() < max(2 * self.worst + 0.02, 0.5)


def in_bfloat16(settings: Mapping[str, Any], path: Path, experts: bool) -> InBfloat16:
    """The model that ``settings`` describe, saved to ``path``."""
    model = random_model(settings, path)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.bfloat16())
    model.save_pretrained(path)
    how = {"attn_implementation": "eager", "experts_implementation": "eager"}
    narrow = AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16, **how)
    error = errors(expected(narrow.eval(), TOKENS), expected(model, TOKENS))
    return InBfloat16(path, model, experts, float(error.median()), float(error.max()))


def errors(actual: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Of each token's logits, as a share of their length."""
    return (actual.float().cpu() - wanted).norm(dim=1) / wanted.norm(dim=1)
