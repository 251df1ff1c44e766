"""The one exception for mistakes that the user can mend."""


class UserError(ValueError):
    """Something the user gave is wrong: the message says what, the value seen, and what to do.

    The command line prints the message without a traceback and exits with code 2.
    """


def shortened(value: object, longest: int = 80, quoted: bool = True) -> str:
    """Writes a value of a file or a server for a message: one line, at most `longest` characters, all printable.

    Args:
      quoted: as Python writes it; else a text as it stands.
    """
    if isinstance(value, str | bytes):
        text = repr(value[: longest + 1]) if quoted else str(value[: longest + 1])
        cut = len(value) > longest
    else:
        text, cut = _small_repr(value, longest)
    text = printable(text).replace("\n", " ")
    return text[:longest] + "..." if cut or len(text) > longest + 12 else text


def printable(text: str, longest: int = 2000) -> str:
    """Makes a text fit for a terminal, whoever wrote what stands in it.

    What would steer it is escaped: control characters other than a new line or tab, and marks of direction. Of more
    than `longest` characters the middle is left out.
    """
    if len(text) > longest:
        text = f"{text[: longest * 3 // 4]} ... {text[-longest // 5 :]}"
    if text.isprintable():
        return text
    return "".join(
        c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape", "backslashreplace").decode()
        for c in text
    )


def _small_repr(value: object, longest: int) -> tuple[str, bool]:
    """Writes a number or the start of a container, and tells whether it is cut; deep or huge ones by their type."""
    if isinstance(value, tuple | list) and all(isinstance(item, int | float | str) for item in value[:8]):
        return ", ".join(shortened(item, 20) for item in value[:8]).join("()"), len(value) > 8
    if isinstance(value, bool | float | None) or (isinstance(value, int) and abs(value) < 10**longest):
        return repr(value), False
    return f"a value of type {type(value).__name__}", False
