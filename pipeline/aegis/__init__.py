"""AEGIS: train a LoRA adapter and a soul on a language model, and prove that both reach the GGUF."""

__version__ = "0.1.0"
