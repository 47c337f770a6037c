"""What scripts/notebooks.py writes into the README and the notebooks: from a manifest to text."""

BEGIN, END = "<!-- notebooks:begin -->", "<!-- notebooks:end -->"
WORDS_A_MINUTE, CODE_LINES_A_MINUTE = 120, 25  # of a reader who stops to think


def tags(cell) -> set[str]:
    return set(cell.metadata.get("tags", []))


def render_table(entries: list[dict]) -> str:
    files = {entry["name"]: f"notebooks/{entry['name']}.ipynb" for entry in entries}

    def row(entry: dict) -> str:
        before = [
            f"[{need[:2]}]({files[need]})" if need in files else need for need in entry["prerequisites"]
        ]
        cells = [
            f"[{entry['name'][:2]}]({files[entry['name']]}) {entry['title']}",
            "; ".join(entry["learn"]),
            ", ".join(before) or "–",
            "–" if entry["minutes"] is None else f"{entry['minutes']} min",
            "–" if entry["memory_gb"] is None else f"{entry['memory_gb']} GB",
            ", ".join(f"`{name.removeprefix('vera_lite.')}`" for name in entry["modules"]),
        ]
        return f"| {' | '.join(cells)} |"

    head = [
        "| Notebook | You learn | Before it | Time | Memory | Uses |",
        "|---|---|---|---|---|---|",
    ]
    return "\n".join(head + [row(entry) for entry in entries])


def with_table(readme: str, table: str) -> str:
    """`readme` with `table` between the two markers."""
    before, begin, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"README.md needs the markers {BEGIN} and {END}")
    return f"{before}{BEGIN}\n{table}\n{END}{after}"


def with_time(cells, entry: dict) -> str:
    """The first cell, with the time that reading takes by its length, and running as it was measured."""
    words = sum(len(cell.source.split()) for cell in cells if cell.cell_type == "markdown")
    code = [cell.source for cell in cells if cell.cell_type == "code" and "hide-input" not in tags(cell)]
    lines = sum(source.count("\n") + 1 for source in code)
    reading = 5 * round((words / WORDS_A_MINUTE + lines / CODE_LINES_A_MINUTE) / 5)
    seconds = None if entry["minutes"] is None else 10 * max(1, round(6 * entry["minutes"]))
    running = f", {seconds} seconds to run" if seconds else ""
    memory = f", {entry['memory_gb']} GB of memory" if entry["memory_gb"] else ""
    where = f"a laptop's CPU, one core{memory}, no GPU, no network"
    line = f"**Time:** {reading} minutes to read{running} ({where})."
    before, mark, rest = cells[0].source.partition("**Time:**")
    _, _, after = rest.partition("\n\n")
    return before + line + ("\n\n" + after if after else "") if mark else before


def badges(repository: str, name: str) -> str:
    """Links that open a notebook of a GitHub repository ("owner/name") in Colab and Binder."""
    file = f"notebooks/{name}.ipynb"
    colab = f"https://colab.research.google.com/github/{repository}/blob/main/{file}"
    binder = f"https://mybinder.org/v2/gh/{repository}/main?labpath={file}"
    install = f'%pip install -q "vera-lite[notebooks] @ git+https://github.com/{repository}"'
    return (
        f"[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]({colab}) "
        f"[![Open in Binder](https://mybinder.org/badge_logo.svg)]({binder})\n\n"
        f"*On Colab, first run this in a new cell:* `{install}`"
    )


def links(entries: list[dict], at: int) -> str:
    """Markdown that leads to the notebooks before and after number ``at``."""
    words = []
    for name, entry in (
        ("Before", entries[at - 1] if at else None),
        ("Next", entries[at + 1] if at + 1 < len(entries) else None),
    ):
        if entry:
            words.append(f"**{name}:** [{entry['name'][:2]} {entry['title']}]({entry['name']}.ipynb)")
    return " · ".join(words)
