"""`exo fetch --list`, `--verify`, `--prune`, `--export` and `--import`: what is on this machine."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from exo_cli.commands.fetch_view import Bars, event
from exo_cli.errors import CheckFailed, Exit, NotFound, UsageProblem
from exo_cli.output import Output

if TYPE_CHECKING:
    from exo_cli.fetch.inventory import Checked, Here
    from exo_cli.fetch.stores import Stores


class Task(Protocol):
    def run(self) -> None: ...


def say(task: Task) -> int:
    task.run()
    return Exit.OK


@dataclass(frozen=True, slots=True)
class List:
    """What is here."""

    output: Output
    stores: "Stores"
    model: str | None

    def run(self) -> None:
        from exo_cli.schemas.fetch import ModelHere

        found = _found(self.stores, self.model)
        if self.output.json:
            for here in found:
                event(
                    self.output,
                    ModelHere(
                        model=here.name,
                        revision=here.revision,
                        digest=here.digest,
                        path=str(here.path),
                        place=here.place,
                        state=here.state,
                        layers=here.layers,
                        layers_in_model=here.layers_in_model,
                        held_bytes=here.held_bytes,
                        total_bytes=here.total_bytes,
                        used_unix_s=round(here.used_unix_s, 3),
                    ),
                )
        elif self.output.quiet:
            for here in found:
                self.output.line(str(here.path))
        else:
            self.output.rows(_HEADER, [_row(here) for here in found])
            if not found:
                self.output.hint("No model is here. exo fetch llama-3.2-1b brings one.")


@dataclass(frozen=True, slots=True)
class Verify:
    """Whether what is here is right."""

    output: Output
    stores: "Stores"
    model: str | None

    def run(self) -> None:
        from exo_cli.fetch.inventory import check
        from exo_cli.schemas.fetch import FileChecked
        from exo_cli.views.figures import bytes_text

        found = _found(self.stores, self.model)

        def told(checked: "Checked") -> None:
            if self.output.json:
                event(
                    self.output,
                    FileChecked(
                        model=checked.model, path=str(checked.path), bytes=checked.size, state=checked.state
                    ),
                )
            else:
                self.output.detail(f"{checked.path}: {checked.state}")

        checked = check(found, told)
        wrong = [each for each in checked if each.state == "wrong"]
        if wrong:
            more = f", and {len(wrong) - 1} more" if len(wrong) > 1 else ""
            raise CheckFailed(
                f"{wrong[0].path} is not what the hub says{more}",
                hint=f"exo fetch --prune {wrong[0].model}, then exo fetch {wrong[0].model} brings it again.",
            )
        right = [each for each in checked if each.state == "right"]
        unknown = [each for each in checked if each.state == "unknown"]
        if not self.output.json:
            read = bytes_text(sum(each.size for each in right))
            rest = f"; {len(unknown)} have no sum to compare with, or are not whole" if unknown else ""
            self.output.note(f"{len(right)} files ({read}) are what the hub says{rest}")


@dataclass(frozen=True, slots=True)
class Prune:
    """Remove what is not wanted any more, after asking."""

    output: Output
    stores: "Stores"
    model: str | None
    yes: bool

    def run(self) -> None:
        from exo_cli.fetch.heads import HeadShelf
        from exo_cli.fetch.inventory import remove
        from exo_cli.schemas.fetch import ModelRemoved
        from exo_cli.views.figures import bytes_text

        found = _found(self.stores, self.model)
        if self.model is None:
            HeadShelf(self.stores.weights).clear()
            found = [here for here in found if here.state != "complete"]
        ours = [here for here in found if here.place != "folder"]
        for here in found:
            if here.place == "folder" and self.model is not None:
                self.output.note(f"{here.path} is not exo's to remove")
        if not ours:
            self.output.note("there is nothing to remove")
            return
        for here in ours:
            self.output.note(
                f"{here.name} {here.revision[:12]}: {bytes_text(here.held_bytes)} in {here.path}"
            )
        self._ask(sum(here.held_bytes for here in ours))
        for here in ours:
            freed = remove([here], self.stores)
            if self.output.json:
                event(
                    self.output,
                    ModelRemoved(
                        model=here.name, revision=here.revision, path=str(here.path), freed_bytes=freed
                    ),
                )
            else:
                self.output.note(f"removed {here.path}; {bytes_text(freed)} are free again")

    def _ask(self, size: int) -> None:
        from exo_cli.views.figures import bytes_text

        if self.yes:
            return
        if sys.stdin is None or not sys.stdin.isatty() or self.output.json:
            raise UsageProblem("nobody is there to say yes", hint="Add --yes to remove this.")
        self.output.aside(f"Remove {bytes_text(size)}? [y/N] ")
        if sys.stdin.readline().strip().lower() not in ("y", "yes"):
            raise UsageProblem("nothing was removed", hint="Answer y, or say --yes.")


@dataclass(frozen=True, slots=True)
class Move:
    """A model into a folder, or out of one where no model is named."""

    output: Output
    stores: "Stores"
    folder: Path
    model: str | None

    def run(self) -> None:
        if self.model is not None:
            self._export(self.model)
        else:
            self._import()

    def _export(self, model: str) -> None:
        from exo_cli.fetch.bundle import export
        from exo_cli.fetch.ensure import seek_whole
        from exo_cli.fetch.meter import DISK, Moved
        from exo_cli.fetch.seek import is_commit
        from exo_cli.schemas.fetch import ModelExported

        sought = seek_whole(model, self.stores.hub)
        path = sought.path
        if path is None or sought.repository is None or not is_commit(path.name):
            raise NotFound(
                f"{model} is not whole in the hub's cache of this machine",
                hint=f"exo fetch {model}, then again.",
            )
        bars = Bars(self.output, doing="writing")

        def told(file: str, done: int, total: int) -> None:
            bars.moved(Moved(model, file, DISK, done, total, 1, 1))

        total = export(path, sought.repository, self.folder, told)
        if self.output.json:
            said = ModelExported(
                model=sought.repository, revision=path.name, path=str(self.folder), total_bytes=total
            )
            event(self.output, said)
        else:
            self.output.line(str(self.folder))

    def _import(self) -> None:
        import asyncio
        import time

        from exo_cli.commands.fetch_work import fetched
        from exo_cli.fetch.ensure import take_in
        from exo_cli.fetch.order import Order

        bars, began_s = Bars(self.output, doing="taking in"), time.monotonic()
        order = Order(on_wait=bars.waits)
        name, brought = asyncio.run(take_in(self.folder, self.stores, order, on_progress=bars.moved))
        fetched(self.output, None, name, None, brought, time.monotonic() - began_s)


_HEADER = ("model", "revision", "layers", "bytes", "state", "last used", "where")


def _row(here: "Here") -> tuple[str, ...]:
    import time

    from exo_cli.fetch.inventory import covered_text
    from exo_cli.plain import duration_text
    from exo_cli.views.figures import bytes_text

    ago = f"{duration_text(max(0.0, time.time() - here.used_unix_s))} ago" if here.used_unix_s else "-"
    held = bytes_text(here.held_bytes)
    if here.state in ("partial", "unverified") and here.held_bytes < here.total_bytes:
        held += f" of {bytes_text(here.total_bytes)}"
    return (
        here.name,
        here.revision[:12] or "-",
        covered_text(here.layers, here.layers_in_model),
        held,
        here.state,
        ago,
        str(here.path),
    )


def _found(stores: "Stores", model: str | None) -> "list[Here]":
    from exo_cli.fetch.inventory import inventory, matching
    from exo_cli.models import catalogue

    found = inventory(stores)
    if model is None:
        return found
    row = catalogue.find(model.partition("@")[0])
    some = matching(found, model, row.repository if row is not None else None)
    if not some:
        raise NotFound(f"nothing of {model} is on this machine", hint="exo fetch --list shows what is here.")
    return some
