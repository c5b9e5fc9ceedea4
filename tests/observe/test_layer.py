"""The layer "observe": what it may know, and who may know it."""

import ast
import subprocess
import sys
from pathlib import Path

import bucket_moo_ext as moo

PACKAGE = Path(moo.__file__).parent
DOCTOR = {"doctor.py", "machine.py", "self_test.py"}
"""It looks at the package as a whole, and at what its wrappers need."""


def imported(path: Path) -> set[str]:
    """Names of modules of this package that a file imports, wherever it does."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, path
            names |= {node.module or ""} | {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in names if name.startswith("bucket_moo_ext")}


def test_the_recorder_knows_the_report_and_the_state_alone() -> None:
    files = {path.name: path for path in (PACKAGE / "observe").glob("*.py")}
    assert files.keys() > DOCTOR
    of_package = ("observe", "report", "state", "plain", "drawing")
    allowed = ("bucket_moo_ext", *(f"bucket_moo_ext.{name}" for name in of_package))
    for name in files.keys() - DOCTOR:
        modules = {module for module in imported(files[name]) if ".".join(module.split(".")[:2]) not in allowed}
        assert not modules, name
        assert not {f"bucket_moo_ext.observe.{doctor[:-3]}" for doctor in DOCTOR} & imported(files[name]), name


def test_nothing_below_knows_it() -> None:
    knows = {
        str(path.relative_to(PACKAGE))
        for path in PACKAGE.rglob("*.py")
        if path.parent.name != "observe" and any("observe" in name for name in imported(path))
    }
    assert knows == {"__init__.py", "__main__.py"}


def test_what_draws_knows_plain_values_alone() -> None:
    """So that reports, which are below the layer "observe", may draw too."""
    assert not imported(PACKAGE / "drawing.py")


def test_importing_the_package_imports_no_writer_and_no_doctor() -> None:
    program = (
        "import sys, bucket_moo_ext; "
        "print(*sorted({'tensorboard', 'wandb', 'mlflow', 'transformers', 'matplotlib', "
        "'bucket_moo_ext.observe.doctor', 'bucket_moo_ext.observe.page'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.strip() == ""
