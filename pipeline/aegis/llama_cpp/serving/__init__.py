"""A GGUF over OpenAI's protocol: a front door that lets in what may come in, and a model in a process of its own."""

from aegis.llama_cpp.serving.server import serve

__all__ = ["serve"]
