"""Probes of llama.cpp: the converter by its pinned digest, the binding by its pinned version and its own hashes."""

from __future__ import annotations

import base64
import hashlib
import os
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from aegis.doctor.cures import install, python
from aegis.doctor.finding import WINDOWS, Finding
from aegis.messages import phrase

_BINDING = "llama-cpp-python"


def converter() -> list[Finding]:
    """Check the converter's source tree: the user's own, or the pinned one, byte by byte."""
    own = os.environ.get("LLAMA_CPP_DIR")
    if own:
        if Path(os.path.expanduser(own), "convert_hf_to_gguf.py").is_file():  # noqa: PTH111
            return [Finding("converter", "ok", phrase("doctor.own_converter", folder=own))]
        detail = phrase("doctor.no_converter", folder=own)
        return [Finding("converter", "fail", detail, "set LLAMA_CPP_DIR=" if WINDOWS else "unset LLAMA_CPP_DIR")]
    from aegis.vendored import vendor_llama_cpp

    pin = vendor_llama_cpp.load_pin()
    tree = vendor_llama_cpp.kept_tree()
    if tree is None:
        detail = phrase("doctor.converter_not_pinned", commit=pin.upstream_commit[:9])
        return [Finding("converter", "fail", detail, f"{python()} -m {vendor_llama_cpp.__name__}")]
    return [Finding("converter", "ok", phrase("doctor.converter", commit=pin.upstream_commit[:9], tree=tree))]


def binding() -> list[Finding]:
    """Check that llama-cpp-python has the pinned version, that its library is unchanged, and that it loads."""
    from aegis.vendored import vendor_llama_cpp

    pin = vendor_llama_cpp.load_pin()
    again = install(f"{_BINDING}=={pin.version}", again=True)
    if find_spec("llama_cpp") is None:
        return [Finding("llama_cpp", "fail", phrase("doctor.no_binding"), install(f"{_BINDING}=={pin.version}"))]
    found = metadata.distribution(_BINDING)
    detail = f"{_BINDING} {found.version}"
    if found.version != pin.version:
        return [Finding("llama_cpp", "fail", phrase("doctor.binding_other", found=detail, pinned=pin.version), again)]
    changed = [str(file) for file in found.files or [] if "/lib/" in f"/{file}" and _is_changed(file)]
    if changed:
        spoilt = phrase("doctor.binding_changed", found=detail, files=", ".join(changed))
        return [Finding("llama_cpp", "fail", spoilt, again)]
    try:
        from aegis.llama_cpp import describe_library

        return [Finding("llama_cpp", "ok", phrase("doctor.binding", found=detail, library=describe_library()))]
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        return [Finding("llama_cpp", "fail", phrase("doctor.binding_broken", found=detail, error=error), again)]


def _is_changed(file: metadata.PackagePath) -> bool:
    if file.hash is None:
        return False
    path = Path(str(file.locate()))
    if not path.is_file():
        return True
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, file.hash.mode).digest()
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode() != file.hash.value
