"""Serves GGUF files over OpenAI's protocol, with a chat page: `llama_cpp/answering` has the models."""

from aegis.chat.serving.server import names_of, serve

__all__ = ["names_of", "serve"]
