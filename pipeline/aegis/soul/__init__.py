"""The soul: a rotation R and a gate g on the final hidden state h, mixed = h + g·R h.

This is what AEGIS is. The package is pure torch and knows nothing of models, runs or files but its own.
"""

from aegis.soul.file import SoulRecord, load_soul, save_soul
from aegis.soul.fold import fold_head
from aegis.soul.gate import AlphaSchedule, phase
from aegis.soul.module import Soul

__all__ = ["AlphaSchedule", "Soul", "SoulRecord", "fold_head", "load_soul", "phase", "save_soul"]
