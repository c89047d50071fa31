"""What ``make demo`` runs: fetch the default model, serve it, ask it eight questions at once, show what came back.

The server is ``quire serve`` in a process of its own, as any user would start it; the client is the official
``openai`` package.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from dataclasses import dataclass

from openai import AsyncOpenAI
from rich.console import Console
from rich.table import Table

from quire.cli.child import ChildFailed, quire_server
from quire.cli.main import main as quire

MAX_TOKENS = 96
QUESTIONS = (
    "How do plants make food?",
    "Give me two tips for sleeping well.",
    "Write a short poem about the sea.",
    "What is a prime number?",
    "Say hello in French.",
    "Name three fruits.",
    "What does a librarian do?",
    "How does a bicycle stay upright?",
)
console = Console()


@dataclass
class Answer:
    question: str
    text: str = ""
    tokens: int = 0
    first_token: float = 0.0  # seconds after the request was sent
    cut: bool = False


def main() -> int:
    console.rule("[bold]1. The model")
    if quire(["pull"]) != 0:
        return 1
    return asyncio.run(serve_and_ask())


async def serve_and_ask() -> int:
    console.rule("[bold]2. The server")
    console.print("starting quire serve")
    async with quire_server() as server:
        console.print(f"ready after [bold]{server.ready_seconds:.1f} s[/]")
        console.rule(f"[bold]3. {len(QUESTIONS)} questions at once")
        start = time.perf_counter()
        answers = await ask_all(f"{server.client.base_url}/v1")
        wall = time.perf_counter() - start
    show(answers)
    console.rule("[bold]4. The figures")
    show_figures(answers, server.ready_seconds, wall)
    console.print(f"The server stopped with status {server.status}.")
    silent = [a.question for a in answers if not a.text.strip()]
    if silent or server.status != 0:
        console.print(f"[red]Something is wrong: no answer to {silent}, server status {server.status}.")
        return 1
    console.print("\nNext: [bold]make serve[/], then README.md has a curl line and a Python example.")
    return 0


async def ask_all(base_url: str) -> list[Answer]:
    async with AsyncOpenAI(base_url=base_url, api_key="none", timeout=300) as client:
        model = (await client.models.list()).data[0].id
        return list(await asyncio.gather(*(ask(client, model, question) for question in QUESTIONS)))


async def ask(client: AsyncOpenAI, model: str, question: str) -> Answer:
    answer = Answer(question)
    start = time.perf_counter()
    stream = await client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": question}],
        max_tokens=MAX_TOKENS,
        temperature=0.2,
        top_p=0.9,
        seed=1,
        extra_body={"repetition_penalty": 1.1},
        stream=True,
        stream_options={"include_usage": True},
    )
    async for event in stream:
        if event.usage:
            answer.tokens = event.usage.completion_tokens
        for choice in event.choices:
            if choice.delta.content:
                answer.first_token = answer.first_token or time.perf_counter() - start
                answer.text += choice.delta.content
            answer.cut = answer.cut or choice.finish_reason == "length"
    return answer


def show(answers: list[Answer]) -> None:
    for answer in answers:
        console.print(answer.question, style="bold cyan", markup=False)
        console.print(answer.text.strip(), markup=False, highlight=False)
        console.print("(cut at the token limit)\n" if answer.cut else "", style="dim")


def show_figures(answers: list[Answer], ready: float, wall: float) -> None:
    tokens = sum(a.tokens for a in answers)
    firsts = sorted(a.first_token for a in answers)
    table = Table("figure", "value", title=f"{len(answers)} streams at once, {os.cpu_count()} cores")
    table.add_row("from start to ready", f"{ready:.2f} s")
    table.add_row("time to first token, median / slowest", f"{firsts[len(firsts) // 2]:.2f} / {firsts[-1]:.2f} s")
    table.add_row("output tokens", str(tokens))
    table.add_row("output tokens per second, all streams", f"{tokens / wall:.1f}")
    console.print(table)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except ChildFailed as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        sys.exit("Stopped.")
