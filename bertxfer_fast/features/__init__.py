"""Frozen features of texts, pooled from any layers of an encoder."""

from __future__ import annotations

from .cache import FeatureCache
from .extractor import FeatureExtractor
from .loaded import forget_models
from .writers import OUTPUT_SUFFIXES, save_features

__all__ = ["OUTPUT_SUFFIXES", "FeatureCache", "FeatureExtractor", "forget_models", "save_features"]
