"""Frozen features of texts, pooled from any layers of an encoder."""

from __future__ import annotations

from .extractor import OUTPUT_SUFFIXES, FeatureExtractor, save_features

__all__ = ["OUTPUT_SUFFIXES", "FeatureExtractor", "save_features"]
