"""Which part of the package may import which."""

import re
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[2] / "python" / "bucket_moo_ext"
HUGGING_FACE = ("accelerate", "datasets", "peft", "sentence_transformers", "transformers", "trl")
TRAINERS = (*HUGGING_FACE, "deepspeed", "lightning", "megatron")


def _imports(path: Path) -> set[str]:
    """Modules that a file imports, wherever in it."""
    found = re.findall(r"^\s*(?:from|import) ([\w.]+)(?: import \(?([\w, ]*))?", path.read_text(), re.MULTILINE)
    names = {f"{module}.{name.strip()}" for module, several in found for name in several.split(",") if name.strip()}
    return {module for module, _ in found} | names


def test_the_package_knows_no_trainer_and_not_what_is_made_of_it() -> None:
    outside = [path for path in PACKAGE.rglob("*.py") if path.relative_to(PACKAGE).parts[0] not in ("contrib", "data")]
    assert len(outside) > 20
    for path in outside:
        for module in _imports(path):
            assert module.split(".")[0] not in TRAINERS, f"{path.name} imports {module}"
            assert not re.match(r"bucket_moo_ext\.(contrib|data)\b", module), f"{path.name} imports {module}"


def test_what_is_made_for_trainers_uses_the_public_package_alone() -> None:
    files = list((PACKAGE / "contrib").glob("*.py"))
    assert files
    for path in files:
        for module in _imports(path):
            if module.startswith("bucket_moo_ext."):
                assert re.match(r"bucket_moo_ext\.(contrib|data)\b", module), f"{path.name} imports {module}"


def test_jax_is_for_its_own_folder_alone() -> None:
    inside = PACKAGE / "jax"
    users = {path for path in PACKAGE.rglob("*.py") if {m.split(".")[0] for m in _imports(path)} & {"jax", "jaxlib"}}
    assert users
    assert all(path.is_relative_to(inside) for path in users)
    for path in PACKAGE.rglob("*.py"):
        if not path.is_relative_to(inside):
            assert not any(m.startswith("bucket_moo_ext.jax") for m in _imports(path)), path.name
