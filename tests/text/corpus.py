"""Strings on which tokenizers go wrong, and how the original models spell a text before they cut it."""

from __future__ import annotations

import random
import unicodedata
from collections.abc import Callable

HARD_STRINGS = [
    "",
    " ",
    "  ",
    "a",
    "Hello, world!",
    " leading and trailing ",
    "0123456789",
    "1 12 123 1234 12345 3.14159 1,000,000 0x1F 1e-9",
    "year2024month12 x1y2z3 ٣٤٥ ४५६ ½ ² Ⅷ",
    "tabs\tand\t\ttabs\n\tindented\n\t\tmore",
    "line\nbreaks\n\n\nand\r\nwindows\r\n\r\nones\rold mac",
    "trailing newline\n",
    "\n\n leading newlines",
    "spaces     of      many       lengths        here         ok          .",
    " " * 31 + "x" + " " * 17,
    "x" + " " * 40 + "y" + " " * 70,
    "mixed \t \n \t\n  whitespace \u00a0\u2003\u3000 kinds\u200b\u2028\u2029.",
    "I'm you're he's we'll they'd I've can't",
    "I'M YOU'RE HE'S WE'LL THEY'D I'VE CAN'T o'clock 'quoted' ''double''",
    "def f(x):\n    if x > 0:\n        return {'a': [1, 2]}\n    # comment\n",
    "for (int i = 0; i < n; ++i) { a[i] += b[i] * c->d; } // end",
    '<html><body class="x">&amp;</body></html>',
    "!!!??? ... ---- ==== //// #### $$$ %%% @@@ ~~~ ``` ^^^ ||| \\\\\\",
    "snake_case camelCase PascalCase kebab-case SCREAMING_SNAKE",
    "https://example.com/path?query=1&other=%20#frag user@example.com",
    "中文字符测试，标点。日本語のテキスト、カタカナ。한국어 텍스트",
    "中文mixed英文with数字123和标点!",
    "Привет мир, как дела? Ελληνικά κείμενα. Ünïcödé ßtraße",
    "مرحبا بالعالم، كيف حالك؟ שלום עולם",
    "नमस्ते दुनिया สวัสดีชาวโลก ជំរាបសួរ",
    "e\u0301 a\u0308 o\u0302\u0323 n\u0303 \u1e9b\u0323 \u212b \ufb01 q\u0307\u0323",
    "👍 👨‍👩‍👧‍👦 🏳️‍🌈 🇩🇪🇫🇷 👩🏽‍💻 ❤️ 1️⃣",
    "\U0001f9ff\U0001fae8 \U00020000\U0002a6d6 \U000e0001",
    "zero\u200dwidth\u200cjoin\ufeffbom\u00adsoft",
    "nul\x00byte \x01\x02\x1b[31mred\x7f",
    "\ufffd \ufffe \U0010ffff",
    "supercalifragilisticexpialidociousantidisestablishmentarianismpneumonoultramicroscopicsilicovolcanoconiosis",
    "a" * 200,
    "ab" * 100 + "!" * 50 + "=" * 70,
    "aaaa aaaaa aaaaaa aaaaaaa",
    "▁ literal ▁▁ space signs ▁▁▁x",
    "Ġ Ċ byte-level stand-ins Ã©",
    "<0x41><0x0A> byte tokens as text",
    "<|im_start|>user\nhi<|im_end|>\n",
    "text<|endoftext|>more<|im_end|>",
    "<bos>x<eos> <start_of_turn>user\nhi<end_of_turn>\n<unk><pad>",
    "<s>[INST] hi [/INST]</s> <|begin_of_text|><|eot_id|>",
    '<tool_call>\n{"name": "f"}\n</tool_call> <think>x</think>',
    "<|fim_prefix|>a<|fim_suffix|>b<|fim_middle|> <repo_name>x<file_sep>",
    "<|im_start <|im_end| |im_end|> <||im_end|>",
    "<table><tr><td>1</td></tr></table> <unused5> [multimodal]",
    "The quick brown fox jumps over the lazy dog. " * 5,
    "ﬀ ﬁ ﬂ ＡＢＣ １２３ ｶﾀｶﾅ ㍿ ℡",
    "\t\t\t\t\t\t\t\tdeep",
    "a\n b\n  c\n   d\n    e",
    "x\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n\ny",
    "don’t “smart quotes” – en — em … dots",
    "ΑΣ İstanbul ıI ǅ ŉ",
    "\u0915\u094d\u0937 \u0e33 \u1100\u1161\u11a8 \uac01",
]

_PIECES = [
    *"abZéß中文한👍\u0301\u200d▁<|>_09٣½.,!-/ſİﬁⅧ\U00020000\ufeff",
    *("'s", "'S", "’s", "\u0915\u094d", "ก็", "<|im_end|>", "<eos>", "</s>", "<0x0A>", "<|endoftext|>"),
]
_BLANKS = [" ", "  ", "\n", "\t", "\r\n", "\u00a0", "\u3000", "\u2028", "\x00", "\x7f", "\x85", "\x0b", "\x1c"]


def _mixed(count: int) -> list[str]:
    rng = random.Random(99)
    return ["".join(rng.choices([*_PIECES, *_BLANKS], k=rng.randrange(2, 30))) for _ in range(count)]


CORPUS = [*HARD_STRINGS, *_mixed(80)]

NORMAL_FORMS: dict[str, Callable[[str], str]] = {
    "smollm2": lambda text: text,
    "qwen": lambda text: unicodedata.normalize("NFC", text),
    "gemma": lambda text: text.replace("▁", " "),
}


def golden_texts(name: str) -> list[str]:
    """The corpus, and the normal forms of its strings where they are others."""
    return list(dict.fromkeys([*CORPUS, *map(NORMAL_FORMS[name], CORPUS)]))
