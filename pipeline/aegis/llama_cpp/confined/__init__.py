"""Confined processes: untrusted input is handled in a separate process with a deadline and a memory bound."""

from aegis.llama_cpp.confined.caller import Caller
from aegis.llama_cpp.confined.frames import Message
from aegis.llama_cpp.confined.process import Confined
from aegis.llama_cpp.confined.running import Ended, Failed, Overdue, TooLarge

__all__ = ["Caller", "Confined", "Ended", "Failed", "Message", "Overdue", "TooLarge"]
