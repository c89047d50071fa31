"""The offline API: a model in this process, with vLLM's names."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from quire.config.engine import DEFAULT_MODEL
from quire.config.keywords import engine_config
from quire.engine.inline import InlineEngine
from quire.model.support import open_supported
from quire.outputs import RequestOutput
from quire.params import SamplingParams
from quire.text.chat_template import load_chat_template
from quire.text.front import open_front
from quire.text.job import Job
from quire.text.prompt import EncodedPrompt, Prompt
from quire.text.tokenizer import Tokenizer
from quire.weights.progress import progress_bar
from quire.weights.sources import locate

_SHOW_EVERY_S = 0.1

Messages = Sequence[Mapping[str, Any]]


class LLM:
    """A model and its engine in this process.

    ``options`` are those of ``EngineConfig`` (also under vLLM's names), e.g. ``dtype``, ``max_model_len``,
    ``skip_tokenizer_init``. Raises ``ConfigError`` for an unknown one, ``WeightsError`` or ``MemoryTooSmall`` when the
    model can't be loaded.

    >>> llm = LLM()
    >>> llm.generate("The capital of France is", SamplingParams(temperature=0, max_tokens=8))[0].outputs[0].text
    """

    def __init__(self, model: str = DEFAULT_MODEL, **options: Any) -> None:
        self.config = engine_config(model, options)
        with progress_bar() as progress:
            path = locate(self.config, progress)
        self.config = replace(self.config, model=str(path))
        checkpoint = open_supported(self.config, path)
        from quire.runtime.build import build_runner  # and with it torch, which takes seconds

        runner = build_runner(self.config)
        self.phases = runner.phases  # of start-up: name -> seconds
        self._engine = InlineEngine(runner, self.config)
        self._front = open_front(self.config, checkpoint)
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
        chat_template: str | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> list[RequestOutput]:
        """Answer one conversation, or several. ``chat_template``: Jinja to use instead of the model's."""
        tokenizer = self._front.tokenizer
        template = load_chat_template(tokenizer, chat_template) if tokenizer and chat_template is not None else None
        conversations = [messages] if messages and isinstance(messages[0], Mapping) else messages
        encoded = [
            self._processor.encode_chat(
                cast(Messages, conversation),
                add_generation_prompt=add_generation_prompt,
                continue_final_message=continue_final_message,
                tools=tools,
                template=template,
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
        if params is None or isinstance(params, SamplingParams):
            each = [params or self.get_default_sampling_params()] * len(prompts)
        else:
            each = list(params)
        if len(each) != len(prompts):
            raise ValueError(f"{len(prompts)} prompts need one SamplingParams, or {len(prompts)}, not {len(each)}.")
        if priority is not None and len(priority) != len(prompts):
            raise ValueError(f"{len(prompts)} prompts need {len(prompts)} priorities, not {len(priority)}.")
        jobs = [
            Job(self._front, self._processor, str(next(self._ids)), prompt, p, priority[i] if priority else 0)
            for i, (prompt, p) in enumerate(zip(prompts, each, strict=True))
        ]
        try:
            self._drive(jobs, use_tqdm)
        finally:
            self._engine.abort([r.request_id for job in jobs for r in job.requests if not job.finished])
        return [job.output() for job in jobs]

    def _drive(self, jobs: list[Job], use_tqdm: bool) -> None:
        owner = {request.request_id: (job, i) for job in jobs for i, request in enumerate(job.requests)}
        for job in jobs:
            for request in job.requests:
                self._engine.add(request)
        columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
        with Progress(*columns, console=Console(stderr=True), disable=not use_tqdm) as progress:
            task = progress.add_task("", total=len(jobs))
            start = shown = time.monotonic()
            tokens = done = 0
            while self._engine.has_work:
                for delta in self._engine.step():
                    tokens += len(delta.token_ids)
                    job, index = owner[delta.request_id]
                    over = job.finished
                    if job.feed(index, delta):
                        self._engine.abort([delta.request_id])
                    done += job.finished and not over
                now = time.monotonic()
                if now - shown > _SHOW_EVERY_S or done == len(jobs):
                    shown = now
                    speed = f"{tokens / (now - start):,.0f} output tokens/s"
                    progress.update(task, completed=done, description=f"{done}/{len(jobs)} prompts, {speed}")


def _prompt_list(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    """One prompt or several: a list of ints is one prompt. What is no prompt is left to the processor to refuse."""
    if isinstance(prompts, (str, bytes, Mapping)) or not isinstance(prompts, Iterable):
        return [prompts]
    several: list[Any] = list(prompts)
    return [several] if several and isinstance(several[0], int) else several
