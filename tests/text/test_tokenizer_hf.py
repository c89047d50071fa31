"""Tokenizers of Hugging Face directories."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Library
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from quire.text.tokenizer import load_tokenizer
from quire.weights.errors import CheckpointError


def library() -> Library:
    vocab = {t: i for i, t in enumerate(["<unk>", "<s>", "</s>", "▁", "h", "i", "▁h", "hi", "▁hi"])}
    made = Library(models.BPE(vocab, [("▁", "h"), ("h", "i"), ("▁h", "i")], unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    made.decoder = decoders.Metaspace(prepend_scheme="first")
    made.add_special_tokens(["<unk>", "<s>", "</s>"])
    made.add_tokens([AddedToken("<tool>", special=False, normalized=False)])
    return made


def directory(path: Path, made: Library, config: dict[str, Any] | None = None, **files: Any) -> Path:
    made.save(str(path / "tokenizer.json"))
    (path / "tokenizer_config.json").write_text(json.dumps(config or {}))
    for name, content in files.items():
        (path / name.replace("__", ".")).write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_a_saved_tokenizer_equals_transformers(tmp_path: Path) -> None:
    saved = PreTrainedTokenizerFast(tokenizer_object=library(), bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    saved.chat_template = "{{ messages }}"
    saved.save_pretrained(tmp_path)
    theirs, ours = AutoTokenizer.from_pretrained(tmp_path), load_tokenizer(tmp_path)
    for text in ("hi hi", "hi</s>hi<tool> hi", " hi"):
        assert ours.encode(text) == theirs(text)["input_ids"]
        ids = ours.encode(text)
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)
    assert (ours.bos_id, ours.eos_id) == (1, 2) and ours.special_ids == {0, 1, 2}
    assert ours.facts.templates == {"default": "{{ messages }}"}


def test_text_after_a_control_token_gets_no_prefix_where_only_the_first_does(tmp_path: Path) -> None:
    """The pieces around a literal are encoded as the whole text would be."""
    from quire.text.protection import Rendered

    ours = load_tokenizer(directory(tmp_path, library()))
    mark = "\U000f0000"
    whole = ours.encode("hi</s>hi", False)
    assert ours.encode_template(Rendered("hi</s>hi", {mark: "</s>"})) == whole == [8, 2, 7]
    literal = ours.encode("hi</s>", False, parse_special=False)
    assert literal[0] == 8 and 2 not in literal
    assert ours.encode_template(Rendered(f"hi{mark}", {mark: "</s>"})) == literal
    assert ours.encode_template(Rendered(f"hi</s>hi{mark}", {mark: "</s>"})) == [8, 2, 7, *literal[1:]]


def test_llama_classes_rebuild_the_ends_from_their_config(tmp_path: Path) -> None:
    config = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>"}
    for bos, eos, expected in ((True, False, [1, 8]), (True, True, [1, 8, 2]), (False, False, [8])):
        path = directory(tmp_path, library(), {**config, "add_bos_token": bos, "add_eos_token": eos})
        assert load_tokenizer(path).encode("hi") == expected


def test_tokens_that_only_the_config_knows_are_added(tmp_path: Path) -> None:
    added = {
        "11": {"content": "<late>", "special": True},
        "10": {"content": "<early>", "special": False, "normalized": False},
        "1": {"content": "<s>", "special": True},
        "x": 1,
    }
    ours = load_tokenizer(directory(tmp_path, library(), {"added_tokens_decoder": added}))
    assert (ours.token_to_id("<early>"), ours.token_to_id("<late>")) == (10, 11)
    assert 11 in ours.special_ids and 10 not in ours.special_ids


@pytest.mark.parametrize(
    ("config", "files", "templates"),
    [
        ({}, {}, {}),
        ({"chat_template": "a"}, {}, {"default": "a"}),
        ({"chat_template": [{"name": "default", "template": "a"}, {"name": "tool_use", "template": "b"}, 5]}, {},
         {"default": "a", "tool_use": "b"}),
        ({"chat_template": "a"}, {"chat_template__jinja": "c"}, {"default": "c"}),
        ({}, {"chat_template__json": {"chat_template": "d"}}, {"default": "d"}),
    ],
)  # fmt: skip
def test_templates_are_found(
    tmp_path: Path, config: dict[str, Any], files: dict[str, Any], templates: dict[str, str]
) -> None:
    assert load_tokenizer(directory(tmp_path, library(), config, **files)).facts.templates == templates


def test_word_pieces_are_streamed_by_the_library(tmp_path: Path) -> None:
    """A decoder that does more than join bytes."""
    vocab = {t: i for i, t in enumerate(["[UNK]", "play", "##ing", "##ed", "a", "game"])}
    made = Library(models.WordPiece(vocab, unk_token="[UNK]"))
    made.normalizer, made.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.Whitespace()
    made.decoder = decoders.WordPiece()
    ours = load_tokenizer(directory(tmp_path, made))
    ids = ours.encode("Playing a game")
    stream = ours.stream()
    assert "".join([*map(stream.push, ids), stream.flush()]) == ours.decode(ids) == "playing a game"
    assert ours.token_bytes(1) == b"play"


def test_a_directory_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no tokenizer\.json"):
        load_tokenizer(tmp_path)
    for text in ("", "{}", "[1]", '{"model": {"type": "BPE", "vocab": 5}}'):
        (tmp_path / "tokenizer.json").write_text(text)
        with pytest.raises(CheckpointError, match=r"tokenizer\.json cannot be read"):
            load_tokenizer(tmp_path)
