"""Families with layer norms: settings of tiny models."""

from __future__ import annotations

from typing import Any

CASES: dict[str, dict[str, Any]] = {}
