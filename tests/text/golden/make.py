"""Writes this folder's JSON files: ids that other programs give for the corpus. Run by hand, not by the tests.

    python tests/text/golden/make.py smollm2|qwen|gemma MODEL.gguf LLAMA_SERVER [TOKENIZER.json]

``LLAMA_SERVER`` is llama.cpp's program (commit b11434), ``TOKENIZER.json`` the original model's published file; without
it, what the JSON file already holds of the original stays.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import httpx
from tokenizers import Tokenizer

from quire.cli.child import ServerProcess, free_port

sys.path.insert(0, str(Path(__file__).parents[1]))
from corpus import golden_texts

FOLDER = Path(__file__).parent
Ids = list[int]


async def main(name: str, model: str, program: str, published: str | None = None) -> None:
    target, port = FOLDER / f"{name}.json", free_port()
    texts = golden_texts(name)
    originals = of_the_published(published, texts) if published else of_the_record(target)
    command = [program, "-m", model, "--port", str(port), "-c", "256", "--no-warmup"]
    async with ServerProcess(command, port, {"LD_LIBRARY_PATH": str(Path(program).parent)}):
        cases = [case(text, f"http://127.0.0.1:{port}/tokenize", originals) for text in texts]
    lines = ",\n".join(json.dumps(each, separators=(",", ":")) for each in cases)
    target.write_text(f"[\n{lines}\n]\n")


def case(text: str, url: str, originals: dict[str, Ids]) -> dict[str, Any]:
    """What agrees with the first ids is left out."""
    parsed, plain = (llama_ids(url, text, parse_special) for parse_special in (True, False))
    found: dict[str, Any] = {"text": text, "llama_cpp": parsed}
    if plain != parsed:
        found["llama_cpp_plain"] = plain
    if originals.get(text, parsed) != parsed:
        found["original"] = originals[text]
    return found


def llama_ids(url: str, text: str, parse_special: bool) -> Ids:
    body = {"content": text, "add_special": False, "parse_special": parse_special}
    ids: Ids = httpx.post(url, json=body, timeout=60).raise_for_status().json()["tokens"]
    return ids


def of_the_published(file: str, texts: list[str]) -> dict[str, Ids]:
    tokenizer = Tokenizer.from_file(file)
    return {text: tokenizer.encode(text, add_special_tokens=False).ids for text in texts}


def of_the_record(target: Path) -> dict[str, Ids]:
    return {each["text"]: each["original"] for each in json.loads(target.read_text()) if "original" in each}


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
