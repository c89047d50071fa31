"""Tokenizers from GGUF metadata: ids equal to the original models' and to llama.cpp's."""

from __future__ import annotations

import json
import random
import threading
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer as Library
from tokenizers import decoders, models, normalizers, pre_tokenizers
from tokenizers.decoders import DecodeStream

from quire.text.gguf_tokenizer import tokenizer_from_gguf
from quire.text.tokenizer import Tokenizer, load_tokenizer
from quire.weights.errors import CheckpointError
from quire.weights.gguf import GGUFFile
from tests.text.corpus import CORPUS, HARD_STRINGS, NORMAL_FORMS, golden_texts
from tests.weights.gguf_builder import tiny_llama

GOLDEN = Path(__file__).parent / "golden"
MODELS = ["smollm2", "qwen", "gemma"]

# Where llama.cpp differs from the original model beyond the normal form of the text (NORMAL_FORMS): </s> is no token of
# Qwen's vocabulary, but llama.cpp makes it one; in Gemma's it is an HTML tag, which llama.cpp reads as a control token.
# Keyed by model and by whether control tokens that are spelt out are parsed.
ONLY_IN_LLAMA_CPP = {("qwen", True): "</s>", ("gemma", False): "</s>"}
# The original Gemma finds these tokens before it replaces spaces; here only its published tokenizer is the oracle.
BEFORE_THE_NORMAL_FORM = {"gemma": "▁▁"}
# Qwen3's file is the oracle for Qwen2.5's: it has two more added tokens.
NOT_IN_QWEN2 = "<think>"


@cache
def loaded(path: Path) -> Tokenizer:
    return load_tokenizer(path)


@pytest.fixture(params=MODELS)
def named(request: pytest.FixtureRequest) -> tuple[str, Tokenizer]:
    return request.param, loaded(request.getfixturevalue(f"{request.param}_path"))


def golden(name: str) -> dict[str, dict[str, Any]]:
    cases = {case["text"]: case for case in json.loads((GOLDEN / f"{name}.json").read_text())}
    assert list(cases) == golden_texts(name), "run golden/make.py again"
    return cases


@pytest.mark.parametrize("parse_special", [True, False])
def test_ids_equal_llama_cpp(named: tuple[str, Tokenizer], parse_special: bool) -> None:
    """Of the text's normal form, which llama.cpp doesn't make itself."""
    name, tokenizer = named
    cases, normal_form = golden(name), NORMAL_FORMS[name]

    def llama_cpp(text: str) -> list[int]:
        ids: list[int] = cases[text]["llama_cpp"]
        return ids if parse_special else cases[text].get("llama_cpp_plain", ids)

    token = ONLY_IN_LLAMA_CPP.get((name, parse_special), "no such text")
    early = BEFORE_THE_NORMAL_FORM.get(name, "no such text")
    for text in (text for text in CORPUS if early not in text):
        ids = tokenizer.encode(text, add_special_tokens=False, parse_special=parse_special)
        assert (ids == llama_cpp(normal_form(text))) == (token not in text), text


def test_control_tokens_that_are_spelt_out_are_text(named: tuple[str, Tokenizer]) -> None:
    _, tokenizer = named
    for text in CORPUS:
        ids = tokenizer.encode(text, add_special_tokens=False, parse_special=False)
        assert not set(ids) & tokenizer.special_ids, text


@pytest.mark.parametrize("name", ["qwen", "gemma"])
def test_ids_equal_the_published_tokenizer(name: str, request: pytest.FixtureRequest) -> None:
    tokenizer = loaded(request.getfixturevalue(f"{name}_path"))
    cases = golden(name)
    for text in HARD_STRINGS:
        if name == "qwen" and NOT_IN_QWEN2 in text:
            continue
        expected = cases[text].get("original", cases[text]["llama_cpp"])
        assert tokenizer.encode(text, add_special_tokens=False) == expected, text


def test_smollm2_equals_a_tokenizer_of_the_originals_parts(smollm2_path: Path) -> None:
    """SmolLM2's tokenizer.json: digits one by one, then GPT-2's words."""
    metadata = GGUFFile.open(smollm2_path).metadata
    tokens, merges = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.merges"]
    vocab = {t: i for i, t in enumerate(tokens)}
    original = Library(models.BPE(vocab, [tuple(m.split(" ")) for m in merges]))
    original.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    original.decoder = decoders.ByteLevel()
    original.add_special_tokens(tokens[:17])
    ours = loaded(smollm2_path)
    for text in [*CORPUS, *random_texts(300)]:
        assert ours.encode(text) == original.encode(text).ids, text


def random_texts(count: int) -> list[str]:
    rng = random.Random(7)
    alphabet = "ab XY09.,!'\n\t\r  éß中文한👍\u0301\u200d\u00a0▁<|>_"
    return ["".join(rng.choices(alphabet, k=rng.randrange(1, 60))) for _ in range(count)]


def test_gemma_merges_are_the_published_ones(gemma_path: Path) -> None:
    """The GGUF holds only scores. The published file has 514,906 merges; a hash of them all in order."""
    import hashlib

    from quire.text.gguf_tokenizer import CONTROL, UNKNOWN, UNUSED, Vocabulary, piece_texts
    from quire.text.merges import merges_from_scores

    vocabulary = Vocabulary(GGUFFile.open(gemma_path).metadata)
    mergeable = ~_is_any(vocabulary.types, (UNKNOWN, CONTROL, UNUSED))
    merges = merges_from_scores(piece_texts(vocabulary.tokens), vocabulary.scores(), mergeable)
    digest = hashlib.sha256("\0".join(f"{a}\0{b}" for a, b in merges).encode()).hexdigest()
    assert len(merges) == 514906
    assert digest == GEMMA_MERGES


GEMMA_MERGES = "945614d761afd769da2ca8fc7ed3bb78cfef941860b0bc160eb05ca7883d60b0"


def _is_any(values: Any, wanted: tuple[int, ...]) -> Any:
    import numpy as np

    return np.isin(values, wanted)


def test_merges_equal_a_plain_search() -> None:
    """Against the obvious algorithm, on a random vocabulary."""
    import numpy as np

    from quire.text.merges import merges_from_scores

    rng = random.Random(3)
    tokens = list(dict.fromkeys("".join(rng.choices("abc", k=rng.randrange(1, 6))) for _ in range(120)))
    scores = np.array([rng.randrange(-5, 1) for _ in tokens], np.float32)
    known = set(tokens)
    rows = [
        (score, k, len(t) - k, t[:k], t[k:])
        for t, score in zip(tokens, scores.tolist(), strict=True)
        for k in range(1, len(t))
        if t[:k] in known and t[k:] in known
    ]
    rows.sort(key=lambda row: row[:3], reverse=True)
    assert merges_from_scores(tokens, scores, np.ones(len(tokens), bool)) == [row[3:] for row in rows]


def test_ends_are_added_where_the_model_wants_them(named: tuple[str, Tokenizer]) -> None:
    name, tokenizer = named
    bare = tokenizer.encode("hi", add_special_tokens=False)
    assert tokenizer.encode("hi") == ([2, *bare] if name == "gemma" else bare)
    assert (tokenizer.bos_id, tokenizer.eos_id) == {"smollm2": (1, 2), "qwen": (151643, 151645), "gemma": (2, 1)}[name]
    assert tokenizer.vocab_size == {"smollm2": 49152, "qwen": 151936, "gemma": 262144}[name]


def test_decoding_gives_the_text_back(named: tuple[str, Tokenizer]) -> None:
    name, tokenizer = named
    for text in [*CORPUS, *random_texts(100)]:
        for parse in (True, False):
            decoded = tokenizer.decode(tokenizer.encode(text, False, parse), skip_special_tokens=False)
            wanted = normalizers.NFC().normalize_str(text) if name == "qwen" else text
            assert decoded == (wanted.replace("▁", " ") if name == "gemma" else wanted)


def random_ids(tokenizer: Tokenizer, rng: random.Random) -> list[int]:
    size, count = tokenizer.vocab_size, rng.randrange(1, 120)
    if rng.random() < 0.5:
        return [rng.randrange(size + 10) for _ in range(count)]
    parts = [i for i in range(600) if len(tokenizer.token_bytes(i)) == 1]
    return [rng.choice(parts) for _ in range(count)]


def test_decoding_random_ids_equals_the_library(named: tuple[str, Tokenizer]) -> None:
    name, tokenizer = named
    rng = random.Random(11)
    for _ in range(60):
        ids = random_ids(tokenizer, rng)
        for skip in (True, False):
            ours = tokenizer.decode(ids, skip)
            theirs = tokenizer._library.decode(ids, skip_special_tokens=skip)
            # For SentencePiece the library gives up whole runs of bytes where one is wrong.
            if name != "gemma" or "\ufffd" not in theirs:
                assert ours == theirs


@pytest.mark.parametrize("skip", [True, False])
def test_a_streams_pieces_are_the_whole_text(named: tuple[str, Tokenizer], skip: bool) -> None:
    _, tokenizer = named
    rng = random.Random(5)
    texts = [tokenizer.encode(t, False) for t in HARD_STRINGS]
    for ids in [*texts, *(random_ids(tokenizer, rng) for _ in range(60))]:
        stream = tokenizer.stream(skip)
        assert "".join([*map(stream.push, ids), stream.flush()]) == tokenizer.decode(ids, skip)


def test_a_stream_never_shows_half_a_character(named: tuple[str, Tokenizer]) -> None:
    _, tokenizer = named
    for text in ("👨‍👩‍👧‍👦🧿🫨", "中文字符测试한국어𠀀", "é́ नमस्ते"):
        stream = tokenizer.stream()
        pieces = [stream.push(i) for i in tokenizer.encode(text, False)]
        assert not any("\ufffd" in piece for piece in pieces) and stream.flush() == ""


def test_a_stream_can_finish_a_character_that_the_prompt_began(named: tuple[str, Tokenizer]) -> None:
    _, tokenizer = named
    ids = tokenizer.encode("x\U000e0041", False)  # a character that no vocabulary has whole
    stream = tokenizer.stream(prompt_ids=ids[:-1])
    assert len(ids) > 2 and stream.push(ids[-1]) == "\U000e0041"


def test_ids_that_are_no_tokens_give_no_text(named: tuple[str, Tokenizer]) -> None:
    _, tokenizer = named
    for bad in (-1, tokenizer.vocab_size + 7, 2**31, 2**40):
        assert tokenizer.id_to_token(bad) is None
        assert tokenizer.token_bytes(bad) == b""
        assert tokenizer.decode([bad]) == ""
        assert tokenizer.stream().push(bad) == ""


ADVERSARIAL: dict[str, Callable[[int], str]] = {
    "one letter": lambda n: "a" * n,
    "two letters": lambda n: "ab" * (n // 2),
    "spaces": lambda n: " " * n,
    "newlines": lambda n: "\n" * n,
    "digits": lambda n: "1" * n,
    "marks": lambda n: "e" + "\u0301" * (n // 2),
    "quotes and blanks": lambda n: "'s\n \t" * (n // 5),
    "joined emoji": lambda n: "👨\u200d" * (n // 7),
    "unfinished special tokens": lambda n: "<|im_" * (n // 5),
}


@pytest.mark.parametrize("kind", ADVERSARIAL)
def test_long_texts_without_words_are_no_trap(named: tuple[str, Tokenizer], kind: str) -> None:
    """300 kB each; anything worse than linear would run into the suite's time limit."""
    name, tokenizer = named
    text = ADVERSARIAL[kind](300_000)
    ids = tokenizer.encode(text, False)
    wanted = normalizers.NFC().normalize_str(text) if name == "qwen" else text
    assert tokenizer.decode(ids, False) == wanted


def test_other_threads_run_while_a_long_text_is_encoded(smollm2_path: Path) -> None:
    tokenizer, steps, done = loaded(smollm2_path), 0, threading.Event()

    def encode() -> None:
        tokenizer.encode("hello world 123 " * 60_000)
        done.set()

    thread = threading.Thread(target=encode)
    thread.start()
    while not done.wait(0.001):
        steps += 1
    thread.join()
    assert steps > 10


def test_lone_surrogates_become_replacement_characters(named: tuple[str, Tokenizer]) -> None:
    _, tokenizer = named
    assert tokenizer.encode("a\ud800b") == tokenizer.encode("a\ufffdb")


def test_max_chars_per_token_is_a_bound(named: tuple[str, Tokenizer]) -> None:
    _, tokenizer = named
    for text in [*HARD_STRINGS, " " * 5000, "=" * 5000, "\n" * 500]:
        assert len(text) <= tokenizer.max_chars_per_token * len(tokenizer.encode(text, False))


def test_tokens_have_bytes(smollm2_path: Path) -> None:
    tokenizer = loaded(smollm2_path)
    ids = tokenizer.encode("naïve 👍 x")
    assert b"".join(map(tokenizer.token_bytes, ids)).decode() == "naïve 👍 x"
    assert tokenizer.token_bytes(1) == b"<|im_start|>" and tokenizer.token_to_id("<|im_start|>") == 1


def metadata(**changes: Any) -> dict[str, Any]:
    """Of a tiny tokenizer, with some values changed (``None``: left out)."""
    import numpy as np

    values = {key: value for key, _, value in tiny_llama().pairs} | {
        f"tokenizer.ggml.{k}": v for k, v in changes.items()
    }
    kinds = {"tokenizer.ggml.token_type": np.int32, "tokenizer.ggml.scores": np.float32}
    for key, kind in kinds.items():
        if isinstance(values.get(key), list):
            values[key] = np.array(values[key], kind)
    return {key: value for key, value in values.items() if value is not None}


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"model": None}, "kind 'None'"),
        ({"model": "bert"}, "kind 'bert'"),
        ({"model": 7}, "kind '7'"),
        ({"tokens": None}, "no tokenizer"),
        ({"tokens": "abc"}, "no list of strings"),
        ({"token_type": [1]}, "no value for each token"),
        ({"merges": ["a"]}, "not two tokens"),
        ({"merges": ["a b c"]}, "not two tokens"),
        ({"merges": ["a zz"]}, "corrupt"),
        ({"merges": ["a h"]}, "corrupt"),
        ({"pre": "unheard-of"}, "rule 'unheard-of'"),
        ({"pre": 5}, "rule '5'"),
        ({"bos_token_id": 999}, "none of the tokens"),
        ({"eos_token_id": -1}, "none of the tokens"),
        ({"eos_token_id": True}, "none of the tokens"),
        ({"model": "llama", "scores": [0.0]}, "no value for each token"),
    ],
)
def test_impossible_metadata_ends_in_one_sentence(changes: dict[str, Any], why: str) -> None:
    with pytest.raises(CheckpointError, match=why) as caught:
        tokenizer_from_gguf(metadata(**changes))
    assert str(caught.value).endswith(".")


def test_llama_style_puts_a_space_before_the_text() -> None:
    """As Llama 2: a space sign before the text, bytes for what is in no token, the space gone on decoding."""
    byte_tokens = [f"<0x{i:02X}>" for i in range(256)]
    tokens = ["<unk>", "<s>", "</s>", *byte_tokens, "▁", "a", "b", "▁a", "ab", "▁ab", "<x>"]
    types = [2, 3, 3, *[6] * 256, 1, 1, 1, 1, 1, 1, 4]
    scores = [0.0] * 259 + [-9.0, -9.0, -9.0, -1.0, -2.0, -3.0, -1000.0]
    values = metadata(
        model="llama", tokens=tokens, token_type=types, scores=scores, bos_token_id=1, eos_token_id=2, merges=None,
        unknown_token_id=0, add_bos_token=None,
    )  # fmt: skip
    tokenizer = Tokenizer(*tokenizer_from_gguf(values))
    at = tokens.index
    assert tokenizer.encode("ab") == [1, at("▁ab")]
    assert tokenizer.encode("ab é", False) == [at("▁ab"), at("▁"), at("<0xC3>"), at("<0xA9>")]
    assert tokenizer.encode("a<x>b", False) == [at("▁a"), at("<x>"), at("▁"), at("b")]
    assert tokenizer.decode(tokenizer.encode("ab é")) == "ab é"
    ids = tokenizer.encode("ab é", False)
    for prompt, text in ((None, "ab é"), ([1], " ab é")):
        stream = tokenizer.stream(prompt_ids=prompt)
        assert "".join([*map(stream.push, ids), stream.flush()]) == text
    broken = [at("<0xC3>"), at("a"), at("<0xA9>"), at("<0xC3>"), at("<0xA9>")]
    assert tokenizer.decode(broken) == "\ufffda\ufffdé"


def test_decode_stream_of_the_library_agrees_on_real_text(named: tuple[str, Tokenizer]) -> None:
    _, tokenizer = named
    for text in HARD_STRINGS:
        ids = tokenizer.encode(text, False)
        theirs = DecodeStream(skip_special_tokens=False)
        pieces = [theirs.step(tokenizer._library, i) or "" for i in ids]
        stream = tokenizer.stream(skip_special_tokens=False)
        assert "".join(map(stream.push, ids)).startswith("".join(pieces))
