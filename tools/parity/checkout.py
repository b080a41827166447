"""A checkout of an authors' repository: what is in it, at which commit, and its code, which runs only when allowed."""

import ast
import importlib
import importlib.util
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from attrs import frozen

LISTED = 12  # files that are named where one is missing
SAFE = ("-c", "core.fsmonitor=false", "-c", "core.hooksPath=/dev/null")  # a checkout's own settings may name programs


class RefusedError(Exception):
    """The comparison cannot be made; the text says what is missing, where, and what to do."""


@frozen
class Checkout:
    """A folder with an authors' repository.

    Attributes:
        root: The folder.
    """

    root: Path

    @property
    def commit(self) -> str:
        """Commit of the checkout, with the number of files that were changed since; or why it is not known."""
        git = shutil.which("git")
        if git is None or not (self.root / ".git").exists():
            return "no git checkout" if git else "unknown, since there is no git"
        head = self._git(git, "rev-parse", "--short=12", "HEAD")
        changed = [line for line in self._git(git, "status", "--porcelain").splitlines() if line]
        if not head:
            return "unknown, since git does not read it"
        return f"{head}, {len(changed)} files changed" if changed else head

    def _git(self, git: str, *words: str) -> str:
        asked = [git, "-C", str(self.root), *SAFE, *words]
        return subprocess.run(asked, capture_output=True, text=True, timeout=60, check=False).stdout.strip()

    def check(self, file: str, name: str) -> None:
        """Refuse a checkout without a definition in a file; runs none of its code.

        Args:
            file: Path in the checkout.
            name: Class or function that it defines.

        Raises:
            RefusedError: Saying what was looked for, and what is there.
        """
        path = self.root / file
        if not path.is_file():
            there = sorted(str(each.relative_to(self.root)) for each in self.root.rglob("*.py"))
            more = f" and {len(there) - LISTED} more" if len(there) > LISTED else ""
            raise RefusedError(
                f"{self.root} has no {file}, which should define {name}; its Python files are "
                f"{', '.join(there[:LISTED]) or 'none'}{more}. Give the root of the repository as --authors; if the "
                "file has moved since, write an entry of your own (--entry)"
            )
        defined = [
            node.name
            for node in ast.parse(path.read_text(encoding="utf-8")).body
            if isinstance(node, (ast.ClassDef, ast.FunctionDef))
        ]
        if name not in defined:
            raise RefusedError(
                f"{path} defines no {name}, but {', '.join(defined) or 'nothing'}; check out the commit that the entry "
                "was written for, or write an entry of your own (--entry)"
            )

    @contextmanager
    def module(self, file: str, package_root: str = "") -> Iterator[ModuleType]:
        """Import a file for a block, and forget all modules of the checkout afterwards. This runs its code.

        Args:
            file: Path in the checkout.
            package_root: Folder in the checkout from which its imports are named.

        Raises:
            RefusedError: If it cannot be imported here.
        """
        folder = self.root / package_root
        dotted = ".".join(Path(file).relative_to(package_root).with_suffix("").parts)
        kept = sys.path.copy(), sys.dont_write_bytecode
        sys.path.insert(0, str(folder.resolve()))
        sys.dont_write_bytecode = True  # leaves the checkout as it is
        hidden = {name: sys.modules.pop(name) for name in _hidden_by(folder) & set(sys.modules)}
        importlib.invalidate_caches()
        try:
            yield self._imported(dotted, file)
        finally:
            sys.path[:], sys.dont_write_bytecode = kept
            inside = str(self.root.resolve())
            for name, module in list(sys.modules.items()):
                if (getattr(module, "__file__", None) or "").startswith(inside):
                    del sys.modules[name]
            sys.modules.update(hidden)

    def _imported(self, dotted: str, file: str) -> ModuleType:
        try:
            return importlib.import_module(dotted)
        except ImportError as error:
            raise RefusedError(
                f"{self.root / file} cannot be imported here: {error}. If a package is missing, install it; if its "
                "imports are of an older library, correct them in the checkout, which the report then says"
            ) from error


def _hidden_by(folder: Path) -> set[str]:
    """Return the names of modules that a folder has, which may be loaded from elsewhere."""
    return {path.stem for path in folder.glob("*.py")} | {path.parent.name for path in folder.glob("*/__init__.py")}


def check_packages(names: tuple[str, ...]) -> None:
    """Refuse if a package is not installed.

    Args:
        names: Names to import.

    Raises:
        RefusedError: Naming those that are missing.
    """
    missing = [name for name in names if importlib.util.find_spec(name.partition(".")[0]) is None]
    if missing:
        raise RefusedError(
            f"the authors' code needs {', '.join(missing)}, not installed here; install it and try again"
        )
