"""Write the table in docs/settings.md anew from labelloop.core.settings: python scripts/write_settings.py"""

from __future__ import annotations

from pathlib import Path

from labelloop.core.settings import table

PAGE = Path(__file__).resolve().parent.parent / "docs" / "settings.md"
BEGIN, END = "<!-- begin: scripts/write_settings.py -->\n", "<!-- end -->\n"


def render(page: str) -> str:
    """`page` with the table between its two marks replaced by the current one."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    rows = ["| setting | environment | default | what it does |", "| --- | --- | --- | --- |"]
    rows += [
        f"| `{name}` | {_code(*environment.split(', '))} | {_code(default)} | {_text(help_)} |"
        for name, environment, default, help_ in table()
    ]
    return before + BEGIN + "\n".join(rows) + "\n" + END + after


def _code(*words: str) -> str:
    """One word a line: three long names side by side would make the table wider than a screen."""
    return "<br>".join(f"`{word}`" if not word.startswith("(") else word for word in words if word)


def _text(help_: str) -> str:
    return help_.replace("|", "\\|").replace("<", "&lt;")


if __name__ == "__main__":
    PAGE.write_text(render(PAGE.read_text()))
