"""The registry of things that come one file each, for rooms that know models and nothing below them."""

from __future__ import annotations

from ..tasks.registry import Registry, check_choice

__all__ = ["Registry", "check_choice"]
