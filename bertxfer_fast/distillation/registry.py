"""The registry that objectives and recipes share with kinds of students."""

from __future__ import annotations

from ..tasks.registry import Registry, check_choice

__all__ = ["Registry", "check_choice"]
