"""Serves a GGUF over OpenAI's protocol: an application that checks every request, and the model in another process."""

from aegis.llama_cpp.serving.server import names_of, serve

__all__ = ["names_of", "serve"]
