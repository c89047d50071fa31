"""Log probabilities in OpenAI's shapes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from quire.engine.messages import TokenLogprobs
from quire.server.openai.events import ChatLogprobs, CompletionLogprobs, PromptLogprobs, TokenLogprob, TopLogprob
from quire.text.output import TokenNames

_FLOOR = -9999.0  # JSON has no -Infinity


class LogprobShapes:
    """Renders positions with token texts, or with ``token_id:N`` where ``as_ids`` asks for it."""

    def __init__(self, names: TokenNames, as_ids: bool) -> None:
        self._names = names
        self._as_ids = as_ids or not names.available

    def token(self, token_id: int) -> str:
        return f"token_id:{token_id}" if self._as_ids else self._names.text(token_id) or ""

    def completion(
        self, positions: Sequence[TokenLogprobs | None], token_ids: Sequence[int], offsets: Sequence[int]
    ) -> CompletionLogprobs:
        """``None`` positions (the first prompt token) have no probability."""
        out = CompletionLogprobs(list(offsets), [], [], [])
        for position, token_id in zip(positions, token_ids, strict=True):
            out.tokens.append(self.token(token_id))
            out.token_logprobs.append(None if position is None else _floor(position.logprobs[0]))
            out.top_logprobs.append(None if position is None else self._by_text(position))
        return out

    def chat(self, positions: Sequence[TokenLogprobs]) -> ChatLogprobs:
        return ChatLogprobs([self._chat_token(p) for p in positions])

    def prompt(self, positions: Iterable[TokenLogprobs | None]) -> PromptLogprobs:
        """vLLM's ``prompt_logprobs``: for each position, details by token id."""
        return [None if p is None else self._by_id(p) for p in positions]

    def _by_text(self, position: TokenLogprobs) -> dict[str, float]:
        found: dict[str, float] = {}
        for token_id, logprob in zip(position.token_ids, position.logprobs, strict=True):
            text = self.token(token_id)
            found[text] = max(found.get(text, _FLOOR), _floor(logprob))
        return found

    def _by_id(self, p: TokenLogprobs) -> dict[int, dict[str, object]]:
        return {
            token_id: {"logprob": _floor(logprob), "rank": rank, "decoded_token": self._names.text(token_id)}
            for token_id, logprob, rank in zip(p.token_ids, p.logprobs, p.ranks, strict=True)
        }

    def _chat_token(self, p: TokenLogprobs) -> TokenLogprob:
        top = [TopLogprob(*self._entry(i, lp)) for i, lp in zip(p.token_ids[1:], p.logprobs[1:], strict=True)]
        token, logprob, raw = self._entry(p.token_ids[0], p.logprobs[0])
        return TokenLogprob(token, logprob, raw, top)

    def _entry(self, token_id: int, logprob: float) -> tuple[str, float, list[int] | None]:
        raw = list(self._names.raw(token_id)) if self._names.available else None
        return self.token(token_id), _floor(logprob), raw


def _floor(logprob: float) -> float:
    return max(_FLOOR, logprob)
