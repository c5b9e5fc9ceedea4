"""This checkout in a folder of its own."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def linked_checkout(folder: Path) -> Path:
    """Makes the folder and links everything into it but what was built, so that commands build there; returns it."""
    folder.mkdir()
    for path in ROOT.iterdir():
        if path.name != "build":
            (folder / path.name).symlink_to(path)
    return folder
