"""``quire generate``: a file of prompts in, a file of answers out, through the offline API."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

from quire.cli.prompts import FilePrompt, read_prompts
from quire.config.client import GenerateConfig, SamplingConfig
from quire.config.engine import EngineConfig
from quire.config.options import ConfigError, changed
from quire.outputs import RequestOutput


def run(files: GenerateConfig, engine: EngineConfig, sampling: SamplingConfig) -> int:
    prompts = read_prompts(files.input, files.chat, sampling.chosen())
    with contextlib.ExitStack() as stack:
        out: IO[str] = sys.stdout
        if files.output != "-":
            out = stack.enter_context(opened(Path(files.output)))
        for prompt, result in zip(prompts, answer(engine, prompts), strict=True):
            out.write(json.dumps(record(prompt, result), ensure_ascii=False) + "\n")
    return 0


def opened(target: Path) -> IO[str]:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        return target.open("w", encoding="utf-8")
    except OSError as error:
        raise ConfigError("output", f"--output: can't write {target}: {error.strerror}.") from None


def answer(engine: EngineConfig, prompts: Sequence[FilePrompt]) -> list[RequestOutput]:
    """The outputs in the order of ``prompts``; chats and plain prompts run as one batch each."""
    from quire.llm import LLM

    llm = LLM(**changed(engine))
    results: dict[int, RequestOutput] = {}
    chats = [i for i, p in enumerate(prompts) if p.messages is not None]
    plain = [i for i, p in enumerate(prompts) if p.messages is None]
    if plain:
        texts: list[Any] = [prompts[i].prompt for i in plain]
        results.update(zip(plain, llm.generate(texts, [prompts[i].params for i in plain]), strict=True))
    if chats:
        conversations: list[Any] = [prompts[i].messages for i in chats]
        results.update(zip(chats, llm.chat(conversations, [prompts[i].params for i in chats]), strict=True))
    return [results[i] for i in range(len(prompts))]


def record(prompt: FilePrompt, result: RequestOutput) -> dict[str, Any]:
    """What one answer's line holds: the line it answers, then the outputs."""
    outputs = [
        {"text": o.text, "finish_reason": o.finish_reason, "num_tokens": len(o.token_ids)} for o in result.outputs
    ]
    return {**prompt.given, "num_prompt_tokens": len(result.prompt_token_ids), "outputs": outputs}
