"""The hash of the code that `make torture` last checked, which is committed with the tests.

`python tests/torture.py --write` stores the hash, `--check` exits with 1 if the code has changed
since. Comments and docstrings do not count.
"""

import ast
import hashlib
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
STORED = ROOT / "tests" / "torture.sha256"
# The packages on which promises about files, processes and text depend.
PACKAGES = ("files", "parallel", "text", "training")


def code_hash(package: Path) -> str:
    """Return the SHA-256 of the code of all modules in `PACKAGES`, as hexadecimal digits."""
    paths = sorted(path for name in PACKAGES for path in (package / name).rglob("*.py"))
    code = [
        f"{path.relative_to(package).as_posix()} {_code(ast.parse(path.read_bytes()))}"
        for path in paths
    ]
    return hashlib.sha256("\n".join(code).encode()).hexdigest()


def _code(node: object) -> str:
    """Return a text for a syntax tree, the same in every version of Python."""
    if isinstance(node, list):
        return f"[{' '.join(map(_code, node))}]"
    if not isinstance(node, ast.AST):
        return repr(node)
    fields = {name: value for name, value in ast.iter_fields(node) if value not in (None, [])}
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        has_docstring = ast.get_docstring(node, clean=False) is not None
        fields["body"] = node.body[has_docstring:]
    inner = " ".join(f"{name}={_code(value)}" for name, value in fields.items())
    return f"{type(node).__name__}({inner})"


def main(action: str) -> int:
    """Store the hash or compare it with the one that is stored; return the exit code."""
    found = code_hash(ROOT / "tfm_cli")
    if action == "--write":
        STORED.write_text(f"{found}\n", encoding="ascii")
        return 0
    return 0 if STORED.is_file() and STORED.read_text(encoding="ascii").strip() == found else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
