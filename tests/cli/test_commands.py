"""The commands on a real model, as a user runs them."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from quire.cli.main import main


def test_plan_tells_the_parts_and_their_sum(smollm2_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(smollm2_path), "--json", "--max-model-len", "1k", "--memory", "2GiB"]) == 0
    plan = json.loads(capsys.readouterr().out)
    sizes = plan["bytes"]
    assert sizes.pop("sum") == sum(sizes.values()) <= 2 * 2**30
    assert 0.8 < sizes["weights"] / smollm2_path.stat().st_size < 1.5
    assert plan["max_model_len"] == 1000
    assert main(["plan", str(smollm2_path)]) == 0
    assert "Context: 8,192 tokens" in capsys.readouterr().out


def test_plan_says_what_is_too_small(smollm2_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(smollm2_path), "--memory", "10MB"]) == 1
    error = capsys.readouterr().err
    assert "raise --memory" in error
    assert len(error.splitlines()) == 1


def test_generate_answers_each_line(smollm2_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [
        {"id": 7, "prompt": "The capital of France is", "max_tokens": 4},
        {"messages": [{"role": "user", "content": "What is the capital of Japan?"}]},
        {"prompt_token_ids": [504, 3575], "ignore_eos": True},
    ]
    prompts, answers = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    prompts.write_text("".join(json.dumps(line) + "\n" for line in lines))
    flags = ["--model", str(smollm2_path), "--max-model-len", "512", "--temperature", "0", "--max-tokens", "12"]
    assert main(["generate", str(prompts), "-o", str(answers), *flags]) == 0
    first, second, third = (json.loads(line) for line in answers.read_text().splitlines())
    assert first["id"] == 7
    assert (first["outputs"][0]["num_tokens"], third["outputs"][0]["num_tokens"]) == (4, 12)
    assert "Paris" in first["outputs"][0]["text"]
    assert "Tokyo" in second["outputs"][0]["text"]
    capsys.readouterr()
    assert main(["generate", str(prompts), *flags]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert [json.loads(line)["outputs"] for line in printed] == [a["outputs"] for a in (first, second, third)]


def test_chat_starts_a_server_of_its_own(
    smollm2_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """``chat -q`` starts ``quire serve``, asks, and stops it."""
    flags = ["--temperature", "0", "--max-tokens", "12"]
    assert main(["chat", str(smollm2_path), "-q", "What is the capital of Japan?", *flags]) == 0
    assert "Tokyo" in capsys.readouterr().out


def test_offline_benchmarks_save_their_figures(smollm2_path: Path, tmp_path: Path) -> None:
    result, plot = tmp_path / "r.json", tmp_path / "plots" / "r.png"
    model = [str(smollm2_path), "--max-model-len", "256", "--result", str(result), "--plot", str(plot)]
    sizes = ["--input-len", "20", "--output-len", "4"]
    assert main(["bench", "throughput", *model, *sizes, "--workload", "random", "--num-prompts", "3"]) == 0
    found = json.loads(result.read_text())
    assert (found["requests"], found["prompt_tokens"], found["output_tokens"]) == (3, 60, 12)
    assert 0 < found["ttft_ms"]["p99"] < found["e2e_ms"]["p99"] <= 1000 * found["seconds"]
    assert plot.read_bytes().startswith(b"\x89PNG")
    plot.unlink()
    assert main(["bench", "latency", *model, *sizes, "--num-iters", "2"]) == 0
    found = json.loads(result.read_text())
    assert 0 < found["tpot_ms"]["p50"] < found["e2e_ms"]["p50"]
    assert plot.exists()


@pytest.mark.parametrize(
    "argv",
    [
        ["generate", "PROMPTS", "-o"],
        ["bench", "throughput", "--result"],
        ["bench", "latency", "--plot"],
        ["bench", "serve", "--plot"],
    ],
)
@pytest.mark.parametrize("place", ["folder", "file/below.x"])
def test_where_nothing_can_be_written_is_said_before_the_work(
    argv: list[str], place: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("one prompt")
    words = [str(tmp_path / "file") if word == "PROMPTS" else word for word in argv]
    assert main([*words, str(tmp_path / place)]) == 2
    error = capsys.readouterr().err
    assert f"{tmp_path / place} " in error
    assert "name a file in" in error


@pytest.mark.parametrize("place", ["x" * 300, "/proc/x/y"])
def test_where_the_system_refuses_is_said_in_one_sentence(
    place: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "prompts.txt").write_text("one prompt")
    assert main(["generate", str(tmp_path / "prompts.txt"), "-o", str(tmp_path / place)]) == 2
    first = capsys.readouterr().err.splitlines()[0]
    assert re.fullmatch(r"quire generate: error: --output: .*can't (be written|write).*\.", first)


def test_serve_refuses_a_bad_checkpoint_in_one_line(tmp_path: Path) -> None:
    """What only the engine's process sees, too, without a trace."""
    sizes = {"hidden_size": 8, "num_attention_heads": 1, "num_hidden_layers": 1, "intermediate_size": 8}
    config = {"model_type": "llama", "vocab_size": 256, "max_position_embeddings": 64, **sizes}
    config["rope_scaling"] = {"rope_type": "llama3"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file({"model.embed_tokens.weight": torch.ones(256, 8)}, tmp_path / "model.safetensors")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(), decoders.ByteLevel()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    command = [sys.executable, "-m", "quire", "serve", str(tmp_path), "--port", "0"]
    dummy = ["--load-format", "dummy"]
    for words, flags in (("lacks the tensor model.layers.0.", []), ("'llama3' of the model's config lacks", dummy)):
        done = subprocess.run([*command, *flags], capture_output=True, text=True, timeout=60)
        first, last = done.stderr.splitlines()
        assert first.startswith("INFO: Quire") and last.startswith("ERROR:") and words in last
        assert done.returncode == 1 and not done.stdout


def test_the_form_of_the_quick_start() -> None:
    command = [sys.executable, "-m", "quire.entrypoints.openai.api_server", "--port", "1", "--max-modl-len", "5"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "Did you mean --max-model-len?" in done.stderr
