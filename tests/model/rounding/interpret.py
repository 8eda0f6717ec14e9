"""Rounds the tensors of a safetensors file with Triton's kernels, interpreted on the CPU.

    TRITON_INTERPRET=1 python interpret.py GIVEN FOUND

Each tensor comes back once per type, as "type/name".
"""

import sys

from safetensors.torch import load_file, save_file

from aegis.model.rounding.in_triton import TRITON_TYPES, round_in_triton

given = load_file(sys.argv[1])
found = {f"{kind}/{name}": round_in_triton(given[name], kind) for kind in TRITON_TYPES for name in given}
save_file(found, sys.argv[2])
