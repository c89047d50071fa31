"""How many prompt tokens fit into a step of a given length, by the steps measured so far."""

from __future__ import annotations

MIN_CHUNK = 16  # tokens; smaller chunks cost a step's overhead for nothing
FIRST_CHUNK = 256  # tokens, until a rate is known
MAX_STEP_S = 2.0  # a longer step could not be told from a stall
TARGET_S = 0.25  # of a step beside which others decode, unless --max-step-ms says otherwise ...
TARGET_DECODES = 4  # ... or, where decoding itself is slow, this many times a decode step
_DECAY = 0.8


class Pace:
    """Costs of a step: a decode step's time, and the time each prompt token adds to it."""

    def __init__(self, target_s: float | None) -> None:
        self._target_s = target_s
        self._decode_s = 0.0
        self._time = 0.0
        self._tokens = 0.0

    def observe(self, decodes: int, prompt_tokens: int, seconds: float) -> None:
        """A step with ``decodes`` single tokens and ``prompt_tokens`` of chunks took ``seconds``."""
        if not prompt_tokens:
            self._decode_s = _DECAY * self._decode_s + (1 - _DECAY) * seconds if self._decode_s else seconds
            return
        if prompt_tokens < MIN_CHUNK:
            return
        # The decodes' share is only an estimate: never let it explain all of the step.
        seconds = max(seconds - (self._decode_s if decodes else 0.0), 0.1 * seconds)
        if seconds / prompt_tokens < 0.5 * self._cost():
            self._time = self._tokens = 0.0  # what was measured before was start-up
        self._time = _DECAY * self._time + seconds
        self._tokens = _DECAY * self._tokens + prompt_tokens

    def chunk(self, decodes: int) -> int:
        """Prompt tokens to run beside ``decodes`` others."""
        if not self._tokens:
            return FIRST_CHUNK
        seconds = self._target() - self._decode_s if decodes else MAX_STEP_S
        return max(int(seconds / max(self._cost(), 1e-9)), MIN_CHUNK)

    def _target(self) -> float:
        """Seconds of a step in which others decode."""
        target = self._target_s or max(TARGET_S, TARGET_DECODES * self._decode_s)
        return min(target, MAX_STEP_S)

    def _cost(self) -> float:
        return self._time / self._tokens if self._tokens else 0.0
