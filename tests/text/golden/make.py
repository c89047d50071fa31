"""Writes this folder's JSON files: ids that other programs give for the corpus. Run by hand, not by the tests.

    python tests/text/golden/make.py MODEL.gguf LLAMA_TOKENIZE OUT.json [TOKENIZER.json]

``LLAMA_TOKENIZE`` is llama.cpp's program (commit b11434), ``TOKENIZER.json`` the original model's published file.
"""

from __future__ import annotations

import ast
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

sys.path.insert(0, str(Path(__file__).parents[1]))
from corpus import HARD_STRINGS


def llama_ids(program: str, model: str, text: str, *flags: str) -> list[int]:
    with tempfile.NamedTemporaryFile("wb", suffix=".txt") as file:
        file.write(text.encode())
        file.flush()
        command = [program, "-m", model, "--ids", "--no-bos", "--log-disable", "--no-escape", "-f", file.name, *flags]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    ids: list[int] = ast.literal_eval(done.stdout.strip())
    return ids


def main(model: str, program: str, out: str, original: str | None = None) -> None:
    tokenizer = Tokenizer.from_file(original) if original else None
    cases: list[dict[str, Any]] = []
    for text in HARD_STRINGS:
        parsed = llama_ids(program, model, text)
        plain = llama_ids(program, model, text, "--no-parse-special")
        case: dict[str, Any] = {"text": text, "llama_cpp": parsed}
        if plain != parsed:
            case["llama_cpp_plain"] = plain
        if tokenizer is not None:
            ids = tokenizer.encode(text, add_special_tokens=False).ids
            if ids != parsed:
                case["original"] = ids
        cases.append(case)
    lines = ",\n".join(json.dumps(case, separators=(",", ":")) for case in cases)
    Path(out).write_text(f"[\n{lines}\n]\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
