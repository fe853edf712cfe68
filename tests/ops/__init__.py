"""Tests of the ops: every public function, on every backend that can run here, against float64 references."""

import pytest

pytest.register_assert_rewrite(f"{__name__}.cases", f"{__name__}.reference")
