"""Models of the Hugging Face hub, through its own client."""

from __future__ import annotations

import os
import re
from pathlib import Path

from quire.weights.errors import SourceError

PATTERNS = ["*.safetensors", "*.json", "*.jinja", "tokenizer.model", "merges.txt", "vocab.txt"]
IGNORED = ["consolidated*", "original/*", "onnx/*", "*/*"]
_GGUF = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)[:/](?P<file>.+\.gguf)", re.ASCII)
_REPO = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", re.ASCII)


def is_hub_id(model: str) -> bool:
    """Whether ``model`` looks like ``org/repo``, ``repo``, ``org/repo:file.gguf`` or ``org/repo/file.gguf``."""
    if ".." in model:
        return False
    return _GGUF.fullmatch(model) is not None or (not model.endswith(".gguf") and _REPO.fullmatch(model) is not None)


def fetch(model: str, revision: str | None, cache: str | None, token: str | None, offline: bool) -> Path:
    """The local snapshot (or GGUF file) of a hub model. Raises ``SourceError``."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # read when it is imported
    import huggingface_hub as hub
    from huggingface_hub import constants, errors

    offline = offline or constants.HF_HUB_OFFLINE
    try:
        if match := _GGUF.fullmatch(model):
            return Path(
                hub.hf_hub_download(
                    match["repo"],
                    match["file"],
                    revision=revision,
                    cache_dir=cache,
                    token=token,
                    local_files_only=offline,
                )
            )
        return Path(
            hub.snapshot_download(
                model, revision=revision, cache_dir=cache, token=token, local_files_only=offline,
                allow_patterns=PATTERNS, ignore_patterns=IGNORED,
            )
        )  # fmt: skip
    except errors.GatedRepoError:
        raise SourceError(f"{model} is gated: accept its terms on the hub, then pass --hf-token.") from None
    except errors.RepositoryNotFoundError:
        raise SourceError(
            f"{model} is neither a path on this machine nor a model on the hub (or it needs --hf-token)."
        ) from None
    except errors.RevisionNotFoundError:
        raise SourceError(f"{model} has no revision {revision!r} on the hub.") from None
    except errors.LocalEntryNotFoundError:
        why = "offline mode is on" if offline else "the hub cannot be reached"
        raise SourceError(f"{model} is not in the local hub cache, and {why}.") from None
    except errors.EntryNotFoundError:
        raise SourceError(f"The hub's repository holds no such file: {model}.") from None
    except errors.HFValidationError:
        raise SourceError(f"{model[:100]!r} is neither a path on this machine nor a hub id.") from None
    except (errors.HfHubHTTPError, OSError, RuntimeError) as error:
        first = str(error).strip().splitlines() or [type(error).__name__]
        raise SourceError(f"{model} cannot be fetched from the hub: {first[0][:200].rstrip('.')}.") from None
