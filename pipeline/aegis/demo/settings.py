"""The numbers that make the embedded default what it is."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class DemoSettings:
    """Corpus, model and schedule of the demo base. Any change gives another cached base."""

    seed: int = 0
    document_count: int = 4000
    conversation_count: int = 8000
    piece_count: int = 1984
    """SentencePiece pieces; the 11 tokens of Phi-3.5's dialogue come on top."""
    vocab_size: int = 2048
    """Rows of the embedding. As in Phi-3.5, a few dozen have no token."""
    hidden_size: int = 256
    """A multiple of 256, like `intermediate_size`, so that no tensor falls back from its K-quant."""
    intermediate_size: int = 512
    layer_count: int = 2
    head_count: int = 4
    steps: int = 560
    batch_tokens: int = 1024
    """Upper bound on a batch, padding included."""
    matrix_learning_rate: float = 0.03
    """Muon's, for the layers' matrices."""
    learning_rate: float = 6e-3
    """Adam's, for embedding, head and norms."""
    warmup_steps: int = 20

    @classmethod
    def quick(cls) -> DemoSettings:
        """A base for tests: built in seconds, loads and converts like the real one, speaks badly."""
        return cls(
            document_count=300,
            conversation_count=700,
            piece_count=1200,
            vocab_size=1280,
            intermediate_size=256,
            layer_count=1,
            steps=40,
            warmup_steps=5,
        )
