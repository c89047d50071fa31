"""The table of subcommands."""

from __future__ import annotations

from quire.cli.command import Command

_SOURCE = "quire.config.engine:ModelSource"
_ENGINE = "quire.config.engine:EngineConfig"
_SERVER = "quire.config.server:ServerConfig"
_SAMPLING = "quire.config.client:SamplingConfig"
_WORKLOAD = "quire.config.bench:WorkloadConfig"
_RESULT = "quire.config.bench:ResultConfig"

COMMANDS: tuple[Command, ...] = (
    Command(
        "serve",
        "Serve a model over an OpenAI-compatible HTTP API.",
        "quire.cli.serve:run",
        (_ENGINE, _SERVER),
        usage="[MODEL] [options]",
        examples=(
            "quire serve",
            "quire serve ./model.gguf --port 8000 --max-model-len 8k",
            "quire serve Qwen/Qwen2.5-0.5B-Instruct --api-key secret --host 0.0.0.0",
            "quire serve --config serve.yaml",
        ),
        foreign=True,
    ),
    Command(
        "chat",
        "Talk to a model in the terminal.",
        "quire.cli.chat:run",
        (_SOURCE, "quire.config.client:ChatConfig", _SAMPLING),
        usage="[MODEL] [options]",
        examples=(
            "quire chat",
            'quire chat -q "What is the capital of Japan?"',
            "quire chat --url http://127.0.0.1:8000",
        ),
    ),
    Command(
        "complete",
        "Continue text in the terminal.",
        "quire.cli.complete:run",
        (_SOURCE, "quire.config.client:ClientConfig", _SAMPLING),
        usage="[MODEL] [options]",
        examples=('quire complete -q "Once upon a time" --max-tokens 32',),
    ),
    Command(
        "generate",
        "Answer a file of prompts, without a server.",
        "quire.cli.generate:run",
        ("quire.config.client:GenerateConfig", _ENGINE, _SAMPLING),
        usage="[FILE] [options]",
        examples=("quire generate prompts.txt -o answers.jsonl --chat --max-tokens 64",),
        foreign=True,
    ),
    Command(
        "bench throughput",
        "Measure offline throughput.",
        "quire.bench.throughput:run",
        (_ENGINE, _WORKLOAD, _RESULT),
        usage="[MODEL] [options]",
        examples=("quire bench throughput --workload w1 --result w1.json --plot w1.png",),
        foreign=True,
    ),
    Command(
        "bench latency",
        "Measure the latency of one batch.",
        "quire.bench.latency:run",
        (_ENGINE, "quire.config.bench:LatencyConfig", _RESULT),
        usage="[MODEL] [options]",
        examples=("quire bench latency --batch-size 1 --input-len 128 --output-len 64",),
        foreign=True,
    ),
    Command(
        "bench serve",
        "Load a running server and measure latencies.",
        "quire.bench.serve:run",
        ("quire.config.bench:LoadConfig", _WORKLOAD, _RESULT),
        examples=(
            "quire bench serve --workload w1 --max-concurrency 16",
            "quire bench serve --request-rate 1 2 4 --num-prompts 32 --result rates.json --plot rates.png",
        ),
    ),
    Command(
        "plan",
        "Show what memory a model will take, without loading it.",
        "quire.cli.plan:run",
        (_ENGINE, "quire.config.client:ReportConfig"),
        usage="[MODEL] [options]",
        examples=("quire plan", "quire plan ./model.gguf --max-model-len 32k --memory 6GiB"),
        foreign=True,
    ),
    Command(
        "pull",
        "Fetch a model.",
        "quire.cli.pull:run",
        (_SOURCE,),
        usage="[MODEL] [options]",
        examples=("quire pull", "quire pull Qwen/Qwen2.5-0.5B-Instruct --revision main"),
    ),
    Command(
        "doctor",
        "Check this machine and installation.",
        "quire.cli.doctor:run",
        ("quire.config.client:ReportConfig",),
        examples=("quire doctor",),
    ),
)
