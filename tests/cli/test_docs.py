"""The documentation is up to date: its generated parts, and the examples that can run here."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

from quire.config.engine import EngineConfig
from quire.config.server import ServerConfig
from quire.config.sources import from_sources

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"

sys.path.insert(0, str(DOCS))
GENERATED = importlib.import_module("generate").PAGES


def examples(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("name", GENERATED)
def test_generated_pages_are_what_the_declarations_say(name: str) -> None:
    page = GENERATED[name]()
    assert (DOCS / name).read_text() == page, "run: make docs"
    assert "|  |\n" not in page, "a family has no tested variant, or an option no meaning"


@pytest.mark.parametrize("page", ["README.md", "docs/python-api.md"])
def test_python_examples_run_as_printed(page: str, smollm2_path: Path, tmp_path: Path) -> None:
    script = tmp_path / "example.py"
    script.write_text("\n".join(examples(ROOT / page, "python")))
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert "Paris" in done.stdout


def test_example_of_a_config_file(tmp_path: Path) -> None:
    file = tmp_path / "serve.yaml"
    file.write_text(examples(DOCS / "serving.md", "yaml")[0])
    (engine, server), notes = from_sources((EngineConfig, ServerConfig), {}, {}, str(file))
    assert (engine.max_model_len, engine.enable_prefix_caching) == (8000, False)
    assert (server.port, server.served_model_name, notes) == (9000, ("small", "default"), [])
