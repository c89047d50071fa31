"""Options of vLLM's that Quire has no use for, or not yet: what to tell those who bring them along.

A value that asks for what is so anyway is accepted, one that has no effect with a note. Any other is refused with a
sentence that gives the reason.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from quire.config.options import ConfigError


@dataclass(frozen=True)
class Foreign:
    """``flags`` of another engine. ``harmless`` holds the values that change nothing here ('*': any).

    ``takes`` says whether a value follows: "none" (a switch, with its --no- form), "one", or "many".
    """

    flags: tuple[str, ...]
    why: str
    harmless: tuple[str, ...] = ()
    takes: str = "one"

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(f[2:].replace("-", "_") for f in self.flags if f.startswith("--"))


_ONE_DEVICE = "this version runs on one device"
_NO_COMPILE = "Quire has no compile step"
_GRAPHS = "which steps become CUDA graphs follows from --max-num-seqs and --max-num-batched-tokens"
_NOT_YET = "not part of this version"
_CODE = "Quire never runs code that comes with a checkpoint; architectures it knows need none"


def _switch(flag: str, why: str, *harmless: str) -> Foreign:
    return Foreign((flag,), why, harmless, takes="none")


FOREIGN: tuple[Foreign, ...] = (
    Foreign(("--tensor-parallel-size", "-tp"), _ONE_DEVICE, ("1",)),
    Foreign(("--pipeline-parallel-size", "-pp"), _ONE_DEVICE, ("1",)),
    Foreign(("--data-parallel-size", "-dp"), _ONE_DEVICE, ("1",)),
    Foreign(("--nnodes",), _ONE_DEVICE, ("1",)),
    Foreign(("--distributed-executor-backend",), _ONE_DEVICE, ("uni", "mp")),
    Foreign(("--api-server-count", "-asc"), "one front-end process serves", ("1",)),
    _switch("--enable-expert-parallel", _ONE_DEVICE, "false"),
    _switch("--trust-remote-code", _CODE, "false"),
    _switch("--enforce-eager", _NO_COMPILE + " to switch off", "true", "false"),
    _switch("--enable-chunked-prefill", "long prompts are always cut into chunks", "true"),
    _switch("--async-scheduling", "the scheduler chooses by itself", "true", "false"),
    _switch("--disable-log-requests", "requests are not logged unless --enable-log-requests is given", "true"),
    _switch("--disable-uvicorn-access-log", "there is no access log unless --enable-log-requests is given", "true"),
    _switch("--disable-custom-all-reduce", _ONE_DEVICE, "true", "false"),
    _switch("--enable-lora", "LoRA adapters are " + _NOT_YET, "false"),
    _switch("--enable-auto-tool-choice", "tool calls are " + _NOT_YET, "false"),
    _switch("--enable-sleep-mode", "sleep mode is " + _NOT_YET, "false"),
    _switch("--enable-prompt-embeds", "prompt embeddings are " + _NOT_YET, "false"),
    _switch("--language-model-only", "text is all this version takes", "true", "false"),
    _switch("--headless", _ONE_DEVICE, "false"),
    Foreign(("--compilation-config", "-cc"), _NO_COMPILE, ("*",)),
    Foreign(("--optimization-level", "-O"), _NO_COMPILE, ("*",)),
    Foreign(("--performance-mode",), "one mode serves both", ("*",)),
    Foreign(("--cudagraph-capture-sizes",), _GRAPHS, ("*",), takes="many"),
    Foreign(("--max-cudagraph-capture-size",), _GRAPHS, ("*",)),
    Foreign(("--swap-space",), "preempted requests are computed again, not swapped", ("*",)),
    Foreign(("--tokenizer-mode",), "the tokenizer follows from the model", ("auto", "hf")),
    Foreign(("--config-format",), "the format follows from the model", ("auto", "hf")),
    Foreign(("--model-impl",), "the implementation follows from the model", ("auto",)),
    Foreign(("--runner",), "this version only generates text", ("auto", "generate")),
    Foreign(("--task",), "this version only generates text", ("auto", "generate")),
    Foreign(("--convert",), "this version only generates text", ("auto", "none")),
    Foreign(("--prefix-caching-hash-algo",), "pages are named by SHA-256", ("sha256", "sha256_cbor")),
    Foreign(("--attention-backend",), "the kernels follow from the device", ("auto",)),
    Foreign(("--attention-config",), "the kernels follow from the device"),
    Foreign(("--logprobs-mode",), "logprobs are those of the model's raw logits", ("raw_logprobs",)),
    Foreign(("--chat-template-content-format",), "the form follows from the template", ("auto",)),
    Foreign(("--generation-config",), "sampling defaults come from the model's own file", ("auto",)),
    Foreign(("--override-generation-config",), "send sampling fields with the request", ("{}",)),
    Foreign(("--cpu-offload-gb",), "weights stay on one device", ("0", "0.0")),
    Foreign(("--kv-cache-memory-bytes",), "use --memory, which bounds weights, pages and work space together"),
    Foreign(("--kv-offloading-size",), "pages stay on one device"),
    Foreign(("--speculative-config", "-sc"), "speculative decoding is " + _NOT_YET),
    Foreign(("--lora-modules",), "LoRA adapters are " + _NOT_YET, takes="many"),
    Foreign(("--max-loras",), "LoRA adapters are " + _NOT_YET, ("*",)),
    Foreign(("--max-lora-rank",), "LoRA adapters are " + _NOT_YET, ("*",)),
    Foreign(("--tool-call-parser",), "tool calls are " + _NOT_YET),
    Foreign(("--reasoning-parser",), "reasoning parsers are " + _NOT_YET),
    Foreign(("--structured-outputs-config",), "structured output is " + _NOT_YET),
    Foreign(("--hf-overrides",), "the model's own configuration holds", ("{}",)),
    Foreign(("--tokenizer-revision",), "--revision applies to every file of the model"),
    Foreign(("--code-revision",), _CODE),
    Foreign(("--limit-mm-per-prompt",), "images, audio and video are " + _NOT_YET, ("*",)),
    Foreign(("--mm-processor-kwargs",), "images, audio and video are " + _NOT_YET),
    Foreign(("--otlp-traces-endpoint",), "traces are " + _NOT_YET),
    Foreign(("--ssl-ca-certs",), "client certificates are " + _NOT_YET),
    Foreign(("--middleware",), "put a proxy in front instead"),
)


def judge(foreign: Foreign, value: Any) -> str | None:
    """A note that ``value`` has no effect, or ``None`` where it asks for what is so anyway.

    Raises ``ConfigError`` for a value that isn't harmless.
    """
    flag, switch = foreign.flags[0], foreign.takes == "none"
    text = str(value).lower() if value is not None else "none"
    asks_nothing = value is None or (switch and text == "false")
    if "*" in foreign.harmless or text in foreign.harmless:
        noted = switch or "*" in foreign.harmless
        return f"{flag} has no effect: {foreign.why}." if noted and not asks_nothing else None
    if value is None and not switch:
        return None
    cure = f" (accepted: {', '.join(foreign.harmless)})" if foreign.harmless and not switch else ""
    raise ConfigError(foreign.names[0], f"{flag} is not available: {foreign.why}{cure}.")
