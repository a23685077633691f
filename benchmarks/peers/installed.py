"""The peers that are installed on this machine, each in a virtual environment of its own (`make peers`)."""

from pathlib import Path

HERE = Path(__file__).resolve().parent
NAMES = ("curator", "data_designer", "distilabel")


def installed() -> dict[str, list[str]]:
    """By name: the start of its command, to which BASE_URL ROWS OUT IN_FLIGHT RPM are added."""
    found = {}
    for name in NAMES:
        python = HERE / ".venvs" / name / "bin" / "python"
        if python.is_file():
            found[name] = [str(python), str(HERE / f"{name}_run.py")]
    return found
