"""How tables are printed."""


def ratio(value: float | None) -> str:
    """A multiple with two decimals, or three digits from ten on."""
    if value is None:
        return "-"
    return f"{value:.3g}" if value >= 10 else f"{value:.2f}"


def print_table(header: list[str], lines: list[list[str]]) -> None:
    """A Markdown table that is aligned as text as well."""
    widths = [max(len(line[i]) for line in [header, *lines]) for i in range(len(header))]
    print("| " + " | ".join(cell.ljust(width) for cell, width in zip(header, widths, strict=True)) + " |")
    print("|" + "|".join("-" * (width + 1) + ":" for width in widths) + "|")
    for line in lines:
        print("| " + " | ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) + " |")
