"""Keys of full pages: a SHA-256 chain, so that a key stands for a page's tokens and all that precede them.

Every field is tagged and of fixed or framed length: no two different inputs hash the same bytes.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from hashlib import sha256


def root_key(page_size: int, salt: str) -> bytes:
    """What the first page's key follows. Prompts share pages only under the same ``salt`` (tenant)."""
    data = salt.encode("utf-8", "surrogatepass")
    return sha256(b"quire-root-1" + struct.pack("<QQ", page_size, len(data)) + data).digest()


def page_key(parent: bytes, token_ids: Sequence[int]) -> bytes:
    """The key of a page that holds ``token_ids`` after the 32-byte ``parent``."""
    count = len(token_ids)
    return sha256(b"quire-page-1" + parent + struct.pack(f"<Q{count}I", count, *token_ids)).digest()


def extend_chain(keys: list[bytes], root: bytes, token_ids: Sequence[int], page_size: int, pages: int) -> None:
    """Append keys until ``keys`` covers the first ``pages`` full pages of ``token_ids``."""
    parent = keys[-1] if keys else root
    for index in range(len(keys), pages):
        parent = page_key(parent, token_ids[index * page_size : (index + 1) * page_size])
        keys.append(parent)
