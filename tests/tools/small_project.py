"""A checkout that is set up in seconds: the real tools/, a project of one module, and an index on 127.0.0.1.

The index has stand-ins for the heavy packages and the real wheel of the binding, packed again, if the tests'
environment
has it. uv is the real one.
"""

import base64
import hashlib
import http.server
import os
import shutil
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib import metadata
from pathlib import Path

from startup import uv
from startup.console import StartError

ROOT = Path(__file__).resolve().parents[2]
STAND_INS = ("torch", "transformers", "peft", "bitsandbytes", "sentencepiece", "pydantic", "typer")
BINDING = "llama_cpp_python"
PYPROJECT = """\
[build-system]
requires = ["tiny-backend"]
build-backend = "tiny_backend"
[project]
name = "aegis-soul"
version = "0.1"
dependencies = [{dependencies}]
[project.optional-dependencies]
dev = ["devtool==1.0"]
"""
# builds the small project's wheel, plain or editable, in a few lines
BACKEND = """
import base64, hashlib, os, zipfile
def _wheel(folder):
    name, info = "aegis_soul-0.1-py3-none-any.whl", "aegis_soul-0.1.dist-info"
    requires = "".join(f"Requires-Dist: {{line}}\\n" for line in {dependencies!r})
    files = {{
        "aegis_soul.pth": os.getcwd() + "\\n" + os.path.join(os.getcwd(), "pipeline") + "\\n",
        info + "/METADATA": "Metadata-Version: 2.1\\nName: aegis-soul\\nVersion: 0.1\\n" + requires
        + "Provides-Extra: dev\\nRequires-Dist: devtool==1.0; extra == 'dev'\\n",
        info + "/WHEEL": "Wheel-Version: 1.0\\nGenerator: tiny\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n",
        info + "/entry_points.txt": "[console_scripts]\\naegis = aegis:main\\n",
    }}
    record = ""
    with zipfile.ZipFile(os.path.join(folder, name), "w") as archive:
        for path, text in files.items():
            archive.writestr(path, text)
            digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).decode().rstrip("=")
            record += f"{{path}},sha256={{digest}},{{len(text.encode())}}\\n"
        archive.writestr(info + "/RECORD", record + info + "/RECORD,,\\n")
    return name
def build_wheel(folder, settings=None, metadata=None): return _wheel(folder)
def build_editable(folder, settings=None, metadata=None): return _wheel(folder)
def get_requires_for_build_editable(settings=None): return []
"""


def write_wheel(folder: Path, name: str, version: str, files: Mapping[str, bytes], tag: str = "py3-none-any") -> Path:
    """Write a wheel with these files, complete as from an index."""
    path = folder / f"{name}-{version}-{tag}.whl"
    info = f"{name}-{version}.dist-info"
    all_files = {
        **files,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: {version}\n".encode(),
        f"{info}/WHEEL": f"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: {tag}\n".encode(),
    }
    record = ""
    with zipfile.ZipFile(path, "w") as archive:
        for member, content in all_files.items():
            archive.writestr(member, content)
            digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).decode().rstrip("=")
            record += f"{member},sha256={digest},{len(content)}\n"
        archive.writestr(f"{info}/RECORD", record + f"{info}/RECORD,,\n")
    return path


def binding_wheel(folder: Path) -> Path | None:
    """Pack the installed binding into a wheel again, with the library that computes and a module that imports."""
    try:
        distribution = metadata.distribution("llama-cpp-python")
    except metadata.PackageNotFoundError:
        return None
    library = Path(str(distribution.locate_file("llama_cpp"))) / "lib"
    files = {f"llama_cpp/lib/{file.name}": file.read_bytes() for file in library.iterdir() if "ggml" in file.name}
    return write_wheel(folder, BINDING, distribution.version, {"llama_cpp/__init__.py": b"", **files})


def _checked(argv: Sequence[str | Path]) -> None:
    subprocess.run([str(part) for part in argv], check=True, capture_output=True)


def uv_program(folder: Path) -> Path | None:
    """Return a real uv: from this environment's set-up, from PATH, or downloaded as start.py does."""
    with suppress(subprocess.CalledProcessError, StartError):
        kept = uv.kept(Path(sys.prefix) / "start")
        return kept or uv.find_or_fetch(folder, _checked)
    return None


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """Serve the files of `folder` at an address of this machine."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments: object) -> None:
            super().__init__(*arguments, directory=str(folder))  # type: ignore[arg-type]

        def log_message(self, *_: object) -> None: ...

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def write_index(folder: Path) -> None:
    """Write a simple index of the stand-ins, the build backend and the tests' other packages."""
    wheels = folder / "files"
    wheels.mkdir(parents=True)
    for name in STAND_INS:
        write_wheel(wheels, name, "1.0", {f"{name}/__init__.py": b"", f"{name}/data.py": b"VALUE = 1\n" * 1000})
    write_wheel(wheels, "devtool", "1.0", {"devtool.py": b""})
    write_wheel(wheels, "tiny_backend", "1.0", {"tiny_backend.py": BACKEND.format(dependencies=_needs()).encode()})
    for wheel in wheels.iterdir():
        name = wheel.name.partition("-")[0].replace("_", "-")
        page = folder / "simple" / name / "index.html"
        page.parent.mkdir(parents=True)
        sha256 = hashlib.sha256(wheel.read_bytes()).hexdigest()
        page.write_text(f'<a href="../../files/{wheel.name}#sha256={sha256}">{wheel.name}</a>', encoding="utf-8")


def _needs() -> list[str]:
    return [f"{name}==1.0" for name in STAND_INS] + ["llama-cpp-python"]


def write_project(root: Path, index: Path) -> None:
    """Write the small checkout; its constraints have the hashes of the index's files."""
    shutil.copytree(
        ROOT / "tools" / "startup", root / "tools" / "startup", ignore=shutil.ignore_patterns("__pycache__")
    )
    shutil.copy(ROOT / "tools" / "start.py", root / "tools")
    dependencies = ", ".join(f'"{line}"' for line in _needs())
    (root / "pyproject.toml").write_text(PYPROJECT.format(dependencies=dependencies), encoding="utf-8")
    lines = []
    for wheel in sorted((index / "files").iterdir()):
        name, version = wheel.name.split("-")[:2]
        sha256 = hashlib.sha256(wheel.read_bytes()).hexdigest()
        lines.append(f"{name.replace('_', '-')}=={version} \\\n    --hash=sha256:{sha256}\n")
    (root / "tools" / "constraints.txt").write_text("".join(lines), encoding="utf-8")
    for path, text in {
        "pipeline/aegis/__init__.py": "def main():\n    print('AEGIS runs')\n",
        "vendor_llama_cpp/__init__.py": "",
        "vendor_llama_cpp/__main__.py": "import os\nprint('fetched')\nprint(os.getcwd())\n",
    }.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text, encoding="utf-8")
    shutil.copy(ROOT / "vendor_llama_cpp" / "pin.toml", root / "vendor_llama_cpp")


def bare_environment(folder: Path, index: str, program: Path) -> dict[str, str]:
    """Return an environment without compiler and git: only uv on PATH, packages from `index`, empty caches."""
    tools = folder / "bin"
    tools.mkdir(exist_ok=True)
    shutil.copy(program, tools)
    kept = {
        key: value for key, value in os.environ.items() if not key.startswith(("PIP_", "UV_", "PYTHON", "CC", "CXX"))
    }
    return {
        **kept,
        "PATH": str(tools),
        "HOME": str(folder),
        "XDG_CONFIG_HOME": str(folder / "none"),
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_INDEX_URL": f"{index}/simple",
        "UV_CACHE_DIR": str(folder / "uv-cache"),
        "PIP_FIND_LINKS": str(tools),  # a place of the user's own: PyTorch's indexes are not asked
        "AEGIS_LANG": "en",
    }
