"""Tests of the sections' numbers: each is of the file and of the training that it stands beside."""

from __future__ import annotations

import pytest

from aegis.report.sections import before_and_after
from aegis.runs.facts import ExportFacts

PERPLEXITY = {"base": 30.0, "trained": 10.0, "merged": 10.1, "f16": 10.2, "Q4_K_M": 12.0, "Q8_0": 10.3}


@pytest.mark.parametrize(
    ("files", "shown"),
    [
        (("Q4_K_M", "Q8_0"), "30 → 12"),
        (("Q8_0", "Q4_K_M"), "30 → 10.3"),
        (("Q8_0", "F16"), "30 → 10.3"),
        (("F16",), "30 → 10.2"),
        (("Q6_K",), "-"),
    ],
)
def test_the_perplexity_after_is_that_of_the_file_to_run(files: tuple[str, ...], shown: str) -> None:
    """Not of the last one that was measured."""
    exported = ExportFacts(name="m", context_tokens=64, files={quant: f"m-{quant}.gguf" for quant in files})
    assert before_and_after({"perplexity": PERPLEXITY}, exported) == shown


def test_without_a_base_or_a_file_there_is_no_before_and_after() -> None:
    exported = ExportFacts(name="m", context_tokens=64, files={"Q4_K_M": "m.gguf"})
    assert before_and_after({"perplexity": {"Q4_K_M": 12.0}}, exported) == "-"
    assert before_and_after({"perplexity": PERPLEXITY}, None) == "-"
    assert before_and_after(None, exported) == "-"
