"""The tokenizer of a Hugging Face directory: tokenizer.json and what lies beside it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer

from quire.text.gguf_tokenizer import ends_processor
from quire.text.tokenizer import TokenizerFacts
from quire.weights.errors import CheckpointError
from quire.weights.hf_checkpoint import read_json

MAX_TEMPLATE = 4 * 1024 * 1024
_NAMED = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")
# These classes rebuild the ends of a text from their config, whatever tokenizer.json says.
_REBUILT_ENDS = ("LlamaTokenizer", "GemmaTokenizer", "CodeLlamaTokenizer")


def tokenizer_from_directory(path: Path) -> tuple[Tokenizer, TokenizerFacts]:
    """Raises ``CheckpointError``."""
    file = path / "tokenizer.json"
    if not file.is_file():
        raise CheckpointError(
            f"{path.name} holds no tokenizer.json; write one with Transformers: AutoTokenizer.from_pretrained(...)"
            ".save_pretrained(...)."
        )
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises bare Exceptions
        raise CheckpointError(f"{path.name}/tokenizer.json cannot be read: {str(error)[:160]}.") from None
    config = read_json(path / "tokenizer_config.json") or {}
    named = _named(read_json(path / "special_tokens_map.json") or {}) | _named(config)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    _add_missing(tokenizer, config.get("added_tokens_decoder"))
    tokenizer.add_special_tokens([text for text in named.values() if tokenizer.token_to_id(text) is not None])
    _rebuild_ends(tokenizer, config, named)
    vocabulary = tokenizer.get_vocab()
    size, longest = max(vocabulary.values(), default=-1) + 1, max(map(len, vocabulary), default=1)
    return tokenizer, TokenizerFacts(size, longest, named, _templates(path, config))


def _named(config: Mapping[str, Any]) -> dict[str, str]:
    out = {}
    for name in _NAMED:
        value = config.get(name)
        text = value.get("content") if isinstance(value, dict) else value
        if isinstance(text, str) and text:
            out[name] = text
    return out


def _add_missing(tokenizer: Tokenizer, added: Any) -> None:
    """Tokens that only tokenizer_config.json knows, in the order of their ids."""
    if not isinstance(added, dict):
        return
    for index in sorted((i for i in added if i.isdecimal()), key=int):
        entry = added[index]
        text = entry.get("content") if isinstance(entry, dict) else None
        if isinstance(text, str) and text and tokenizer.token_to_id(text) is None:
            flags = {
                k: v
                for k in ("lstrip", "rstrip", "single_word", "normalized", "special")
                if (v := entry.get(k)) is not None
            }
            tokenizer.add_tokens([AddedToken(text, **{k: bool(v) for k, v in flags.items()})])


def _rebuild_ends(tokenizer: Tokenizer, config: Mapping[str, Any], named: Mapping[str, str]) -> None:
    if str(config.get("tokenizer_class")).removesuffix("Fast") not in _REBUILT_ENDS or "add_bos_token" not in config:
        return
    ends = []
    for flag, name in (("add_bos_token", "bos_token"), ("add_eos_token", "eos_token")):
        text = named.get(name) if config.get(flag) else None
        index = tokenizer.token_to_id(text) if text is not None else None
        ends.append(None if text is None or index is None else (text, index))
    tokenizer.post_processor = ends_processor(ends[0], ends[1])


def _templates(path: Path, config: Mapping[str, Any]) -> dict[str, str]:
    """A file of its own comes before the one in the config."""
    templates: dict[str, str] = {}
    found = config.get("chat_template")
    if found is None:
        found = (read_json(path / "chat_template.json") or {}).get("chat_template")
    if isinstance(found, str):
        templates["default"] = found
    elif isinstance(found, list):
        templates = {
            t["name"]: t["template"] for t in found if isinstance(t, dict) and {"name", "template"} <= t.keys()
        }
    files = {"default": path / "chat_template.jinja"}
    files |= {file.stem: file for file in sorted((path / "additional_chat_templates").glob("*.jinja"))}
    return templates | {name: _read_text(file) for name, file in files.items() if file.is_file()}


def _read_text(file: Path) -> str:
    if file.stat().st_size > MAX_TEMPLATE:
        raise CheckpointError(f"{file.name} is larger than {MAX_TEMPLATE >> 20} MiB.")
    try:
        return file.read_text("utf-8")
    except UnicodeDecodeError:
        raise CheckpointError(f"{file.name} is no UTF-8 text.") from None
