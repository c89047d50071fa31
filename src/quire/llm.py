"""The offline API: a model in this process, with vLLM's names."""

from __future__ import annotations

import difflib
import itertools
import time
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from quire.config.engine import DEFAULT_MODEL, EngineConfig
from quire.engine.inline import InlineEngine
from quire.engine.messages import EngineRequest, TokenDelta
from quire.outputs import RequestMetrics, RequestOutput
from quire.params import SamplingParams
from quire.runtime.build import build_runner
from quire.text.front import open_front
from quire.text.output import CompletionCollector
from quire.text.prompt import EncodedPrompt, Prompt
from quire.text.tokenizer import Tokenizer
from quire.weights.progress import progress_bar
from quire.weights.sources import locate

Messages = Sequence[Mapping[str, Any]]

# vLLM's names of options that Quire calls otherwise.
_RENAMED = {"gpu_memory_utilization": "memory", "block_size": "page_size"}
# vLLM's options with the one value that Quire has.
_FIXED: dict[str, Any] = {"tensor_parallel_size": 1, "pipeline_parallel_size": 1, "trust_remote_code": False}
# vLLM's options that change nothing here.
_IGNORED = {"enforce_eager", "disable_log_stats", "swap_space", "enable_chunked_prefill", "tokenizer_mode"}


class LLM:
    """A model and its engine in this process.

    ``options`` are those of ``EngineConfig`` (also under vLLM's names), e.g. ``dtype``, ``max_model_len``,
    ``skip_tokenizer_init``. Raises ``TypeError`` for an unknown one, ``WeightsError`` or ``MemoryTooSmall`` when the
    model can't be loaded.

    >>> llm = LLM()
    >>> llm.generate("The capital of France is", SamplingParams(temperature=0, max_tokens=8))[0].outputs[0].text
    """

    def __init__(self, model: str = DEFAULT_MODEL, **options: Any) -> None:
        self.config = engine_config(model, options)
        with progress_bar() as progress:
            path = locate(self.config, progress)
        self.config = replace(self.config, model=str(path))
        self._engine = InlineEngine(build_runner(self.config), self.config)
        self._front = open_front(self.config, path)
        self._processor = self._front.processor(self._engine.core.limits)
        self._ids = itertools.count()

    def get_tokenizer(self) -> Tokenizer | None:
        return self._front.tokenizer

    def get_default_sampling_params(self) -> SamplingParams:
        """vLLM's defaults, changed by the model's generation_config."""
        return SamplingParams(**self._processor.facts.sampling_defaults)

    def reset_prefix_cache(self) -> None:
        self._engine.reset_prefix_cache()

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        use_tqdm: bool = True,
        priority: Sequence[int] | None = None,
    ) -> list[RequestOutput]:
        """Complete prompts: texts, lists of token ids, or dicts with ``prompt`` or ``prompt_token_ids``.

        One ``SamplingParams`` serves all prompts, or give one each. Outputs come in the order of the prompts. Raises
        ``ParameterError`` before anything runs when a prompt or a parameter is out of range.
        """
        encoded = [self._processor.encode(prompt) for prompt in _prompt_list(prompts)]
        return self._run(encoded, sampling_params, use_tqdm, priority)

    def chat(
        self,
        messages: Messages | Sequence[Messages],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        use_tqdm: bool = True,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> list[RequestOutput]:
        """Answer one conversation, or several."""
        conversations = [messages] if messages and isinstance(messages[0], Mapping) else messages
        encoded = [
            self._processor.encode_chat(
                conversation,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=continue_final_message,
                variables=chat_template_kwargs,
            )
            for conversation in conversations
        ]
        return self._run(encoded, sampling_params, use_tqdm, None)

    def _run(
        self,
        prompts: list[EncodedPrompt],
        params: SamplingParams | Sequence[SamplingParams] | None,
        use_tqdm: bool,
        priority: Sequence[int] | None,
    ) -> list[RequestOutput]:
        each = [params or self.get_default_sampling_params()] * len(prompts) if not _many(params) else list(params)  # type: ignore[arg-type]
        if len(each) != len(prompts):
            raise ValueError(f"{len(prompts)} prompts need one SamplingParams, or {len(prompts)}, not {len(each)}.")
        jobs = [
            _Job(self, str(next(self._ids)), prompt, p, priority[i] if priority else 0)
            for i, (prompt, p) in enumerate(zip(prompts, each, strict=True))
        ]
        try:
            self._drive(jobs, use_tqdm)
        finally:
            self._engine.abort([r.request_id for job in jobs for r in job.requests if not job.finished])
        return [job.output() for job in jobs]

    def _drive(self, jobs: list[_Job], use_tqdm: bool) -> None:
        owner = {request.request_id: (job, i) for job in jobs for i, request in enumerate(job.requests)}
        for job in jobs:
            for request in job.requests:
                self._engine.add(request)
        columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
        with Progress(*columns, disable=not use_tqdm, transient=False) as progress:
            task = progress.add_task("", total=len(jobs))
            start, tokens = time.monotonic(), 0
            while self._engine.has_work:
                for delta in self._engine.step():
                    tokens += len(delta.token_ids)
                    job, index = owner[delta.request_id]
                    if job.feed(index, delta):
                        self._engine.abort([delta.request_id])
                done = sum(job.finished for job in jobs)
                speed = tokens / (time.monotonic() - start)
                progress.update(
                    task, completed=done, description=f"{done}/{len(jobs)} prompts, {speed:,.0f} output tokens/s"
                )


class _Job:
    """One prompt and its ``n`` completions."""

    def __init__(self, llm: LLM, request_id: str, prompt: EncodedPrompt, params: SamplingParams, priority: int) -> None:
        front = llm._front
        self.requests: list[EngineRequest] = llm._processor.request(
            request_id, prompt, params, priority=priority, arrival_time=time.time()
        )
        self._names = front.names
        self._collectors = [
            CompletionCollector(i, r.params, front.stream(params.skip_special_tokens), front.names)
            for i, r in enumerate(self.requests)
        ]
        self._output = RequestOutput(
            request_id, prompt.text, prompt.token_ids, [], metrics=RequestMetrics(self.requests[0].arrival_time)
        )

    @property
    def finished(self) -> bool:
        return all(c.assembler.finished for c in self._collectors)

    def feed(self, index: int, delta: TokenDelta) -> bool:
        """Take a delta of a completion; true when its request must be aborted (a stop string ended it)."""
        out, metrics = self._output, self._output.metrics
        if index == 0 and metrics is not None:
            out.num_cached_tokens = delta.num_cached_tokens or out.num_cached_tokens
            metrics.first_scheduled_time = delta.scheduled_time or metrics.first_scheduled_time
            metrics.first_token_time = delta.first_token_time or metrics.first_token_time
        if delta.prompt_logprobs is not None:
            out.prompt_logprobs = [p and self._names.logprobs(p) for p in delta.prompt_logprobs]
        assembler = self._collectors[index].assembler
        self._collectors[index].feed(delta)
        if self.finished and metrics is not None and metrics.finished_time is None:
            metrics.finished_time = time.time()
        return assembler.must_abort and delta.finish_reason is None

    def output(self) -> RequestOutput:
        self._output.outputs = [c.result() for c in self._collectors]
        self._output.finished = self.finished
        return self._output


def engine_config(model: str, options: Mapping[str, Any]) -> EngineConfig:
    """``options`` under Quire's or vLLM's names. Raises ``TypeError`` for an unknown one, naming the nearest."""
    known = {f.name for f in fields(EngineConfig)}
    chosen: dict[str, Any] = {}
    for name, value in options.items():
        name = _RENAMED.get(name, name)
        if name in _IGNORED or (name in _FIXED and value == _FIXED[name]):
            continue
        if name in _FIXED:
            raise TypeError(f"{name}={value!r} is not supported; {name} must be {_FIXED[name]!r}.")
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            raise TypeError(f"LLM has no option {name!r}" + (f"; did you mean {near[0]!r}?" if near else "."))
        chosen[name] = str(value) if name == "memory" else value
    return EngineConfig(model=model, **chosen)


def _prompt_list(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    """One prompt or several: a list of ints is one prompt."""
    if isinstance(prompts, (str, Mapping)) or (prompts and isinstance(prompts[0], int)):
        return [prompts]  # type: ignore[list-item]
    return list(prompts)  # type: ignore[arg-type]


def _many(params: object) -> bool:
    return isinstance(params, Sequence)
