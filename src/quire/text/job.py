"""One prompt and its ``n`` completions, for the Python API."""

from __future__ import annotations

import time

from quire.engine.messages import EngineRequest, TokenDelta
from quire.outputs import RequestMetrics, RequestOutput
from quire.params import SamplingParams
from quire.text.front import TextFront
from quire.text.output import CompletionCollector
from quire.text.prompt import EncodedPrompt, Processor


class Job:
    """Turns deltas of the engine's requests into one ``RequestOutput``."""

    def __init__(
        self,
        front: TextFront,
        processor: Processor,
        request_id: str,
        prompt: EncodedPrompt,
        params: SamplingParams,
        priority: int = 0,
    ) -> None:
        """Raises ``ParameterError`` when the model can't serve ``params``."""
        self.requests: list[EngineRequest] = processor.request(
            request_id, prompt, params, priority=priority, arrival_time=time.time()
        )
        self._names = front.names
        self._collectors = [
            CompletionCollector(i, r.params, front.stream(params.skip_special_tokens, prompt.token_ids), front.names)
            for i, r in enumerate(self.requests)
        ]
        self._open = len(self._collectors)  # completions that go on
        self._output = RequestOutput(
            request_id, prompt.text, prompt.token_ids, [], metrics=RequestMetrics(self.requests[0].arrival_time)
        )

    @property
    def finished(self) -> bool:
        return self._open == 0

    def feed(self, index: int, delta: TokenDelta) -> bool:
        """Take a delta of a completion; true when its request must be aborted (a stop string ended it)."""
        out, metrics = self._output, self._output.metrics
        if index == 0 and metrics is not None:
            out.num_cached_tokens = delta.num_cached_tokens or out.num_cached_tokens
            metrics.first_scheduled_time = delta.scheduled_time or metrics.first_scheduled_time
            metrics.first_token_time = delta.first_token_time or metrics.first_token_time
        if delta.prompt_logprobs is not None:
            out.prompt_logprobs = [None if p is None else self._names.logprobs(p) for p in delta.prompt_logprobs]
        assembler = self._collectors[index].assembler
        if assembler.finished:
            return False
        self._collectors[index].feed(delta)
        if assembler.finished:
            self._open -= 1
            if self.finished and metrics is not None:
                metrics.finished_time = time.time()
        return assembler.must_abort and delta.finish_reason is None

    def output(self) -> RequestOutput:
        self._output.outputs = [c.result() for c in self._collectors]
        self._output.finished = self.finished
        return self._output
