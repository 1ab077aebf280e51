"""One report of the alias benchmark: text, tables, plots and numbers, written together."""

from __future__ import annotations

from pathlib import Path

from refocus_ext.errors import RunFailed
from refocus_ext.storage.atomic import written_beside

# ------------------------------------------------------------------------------------------------ the page


class Page:
    """Prints each section and collects it for report.md, which also has the parts that are too long for a terminal."""

    def __init__(self, out: Path) -> None:
        self.out, self.lines = out, ["# The alias benchmark", ""]

    def section(self, title: str) -> None:
        print(f"\n{title}\n{'-' * len(title)}")
        self.lines += [f"## {title}", ""]

    def table(self, lines: list[str], title: str = "", quiet: bool = False) -> None:
        if not quiet:
            print("\n".join([*([title] if title else []), *lines, ""]))
        self.lines += [*([f"**{title}**", ""] if title else []), "```", *lines, "```", ""]

    def words(self, lines: list[str], quiet: bool = False) -> None:
        if not quiet:
            print("\n".join([*lines, ""]))
        self.lines += [f"{'  - ' if line.startswith('  ') else '- '}{line.strip()}" for line in lines] + [""]

    def picture(self, name: str, caption: str) -> Path:
        self.lines += [f"![{caption}]({name})", ""]
        return self.out / name

    def close(self) -> None:
        """Writes report.md.

        Raises:
            RunFailed: it cannot be written.
        """
        try:
            with written_beside(self.out / "report.md") as beside:
                beside.write_text("\n".join(self.lines))
        except OSError as error:
            raise RunFailed(f"{self.out / 'report.md'} could not be written ({error.strerror}).") from error
        print(f"wrote {self.out / 'report.md'} and its pictures")
