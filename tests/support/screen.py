"""A terminal of a given width that remembers its lines."""

import io

from rich.console import Console, RenderableType


def shown(renderable: RenderableType, width: int, *, color: bool = False) -> str:
    """What a terminal would receive, without spaces at line ends."""
    stream = io.StringIO()
    console = Console(
        file=stream,
        width=width,
        force_terminal=color,
        color_system="standard" if color else None,
        highlight=False,
        markup=False,
        emoji=False,
        legacy_windows=False,
    )
    console.print(renderable)
    return "".join(line.rstrip(" ") + "\n" for line in stream.getvalue().split("\n")[:-1])
