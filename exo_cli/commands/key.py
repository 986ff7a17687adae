"""`exo key`: the one secret that makes a cluster, made, carried, shown and replaced."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from exo_cli import config
from exo_cli.commands.session import Session, verb

if TYPE_CHECKING:
    from exo_cli.trust.changes import Change, Secrets

_CARRY = "exo key export | ssh HOST exo key join -"

key_app = typer.Typer(
    name="key",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
    no_args_is_help=True,
)


def register(app: typer.Typer) -> None:
    app.add_typer(key_app, name="key")


@key_app.callback()
def root() -> None:
    """Make, carry, show and replace the cluster's one secret.

    \b
    Examples:
      exo key new                                  this machine starts a cluster
      exo key export | ssh mac2 exo key join -     mac2 belongs to it
      exo key show                                 which key this machine has

    \b
    Who holds the key can run, stop and read everything in the cluster. Without
    one, a key of this user's own keeps everything on this machine.
    """


@key_app.command()
@verb
def new(
    session: Session,
    if_missing: Annotated[
        bool, typer.Option("--if-missing", help="Keep the key that is there, if there is one.")
    ] = False,
) -> None:
    """Make the key of a new cluster.

    \b
    Examples:
      exo key new
      exo key new --if-missing     for a Makefile: the second run changes nothing

    \b
    Prints the key's fingerprint. A node that runs already stays on this machine
    alone until it is started again.
    """
    from exo_cli.trust import changes

    path = config.cluster_key_path()
    change = changes.new(path, if_missing=if_missing)
    _report(session, "new", path, change, "Made the key", f"For each other machine: {_CARRY}")


@key_app.command()
@verb
def export(
    session: Session,
    to: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="FILE", help="Write a new file, readable by you alone."),
    ] = None,
) -> None:
    """Write the key, for another machine to join.

    \b
    Examples:
      exo key export | ssh mac2 exo key join -
      exo key export -o cluster.bundle

    \b
    A terminal is refused: what is shown there stays in its history. During a
    rotation the new key and the previous one are written.
    """
    from exo_cli.errors import UsageProblem
    from exo_cli.trust import changes, keyfile
    from exo_cli.trust.derive import fingerprint

    if to is None and session.output.stdout_is_a_terminal:
        raise UsageProblem("the key is not shown on a terminal", hint=_CARRY)
    secrets = changes.cluster_secrets(config.cluster_key_path())
    bundle = None if to else keyfile.encode(secrets).decode("ascii")
    if to is not None:
        _write_bundle(to, secrets)
        session.output.note(f"Wrote the key to {to}. Delete it when every machine has joined.")
    if session.output.json:
        from exo_cli.schemas.events import line
        from exo_cli.schemas.key import KeyExported

        fingerprints = tuple(fingerprint(secret) for secret in secrets)
        event = KeyExported(path=str(to) if to else None, fingerprints=fingerprints, bundle=bundle)
        session.output.line(line(event))
    elif bundle is not None:
        session.output.write(bundle)


@key_app.command()
@verb
def join(
    session: Session,
    source: Annotated[
        str, typer.Argument(metavar="FILE", help="What `exo key export` wrote; - for standard input.")
    ],
    replace: Annotated[
        bool, typer.Option("--replace", help="Leave the cluster that this machine has a key of.")
    ] = False,
) -> None:
    """Take over the key of another machine.

    \b
    Examples:
      exo key export | ssh mac2 exo key join -     typed on a machine that has it
      exo key join cluster.bundle

    \b
    Joining twice changes nothing. A rotation is joined the same way: the new key
    comes with the previous one, which proves that it is the same cluster's.
    """
    from exo_cli.trust import changes

    path = config.cluster_key_path()
    change = changes.join(path, _read_bundle(source), replace=replace)
    _report(session, "join", path, change, "Joined with the key", "See who is there: exo discover")


@key_app.command()
@verb
def show(session: Session) -> None:
    """Show which key this machine has; never the key itself.

    \b
    Examples:
      exo key show
      exo key show -q     the fingerprints alone, the primary first

    Two machines are of one cluster when they show the same fingerprint.
    """
    from exo_cli.errors import NotFound
    from exo_cli.trust import keyfile
    from exo_cli.trust.derive import fingerprint

    kind: Literal["cluster", "local"] = "cluster"
    path = config.cluster_key_path()
    secrets: Secrets = ()
    try:
        secrets = keyfile.read(path)
    except NotFound:
        kind, path = "local", config.local_key_path()
        # The first verb that needs the local key makes it; showing writes nothing.
        if path.exists():
            secrets = keyfile.read(path)
    mode = f"{path.stat().st_mode & 0o7777:04o}" if secrets else None
    _show(session, kind, path, mode, tuple(fingerprint(secret) for secret in secrets))


@key_app.command()
@verb
def rotate(
    session: Session,
    finish: Annotated[bool, typer.Option("--finish", help="Drop the previous key.")] = False,
) -> None:
    """Replace the key while the cluster runs.

    \b
    Examples:
      exo key rotate                               a new key; the old one stays valid
      exo key export | ssh mac2 exo key join -     for each machine that stays
      exo key rotate --finish                      then, on each machine: drop the old one

    \b
    In between every machine can speak to every other. This is also how a machine
    is put out of the cluster: leave it out. Calls of its that run at that moment
    end when they end; restarting a node ends them at once.
    """
    from exo_cli.trust import changes

    path = config.cluster_key_path()
    if finish:
        change = changes.finish(path)
        _report(
            session,
            "finish",
            path,
            change,
            "The rotation is over; the only valid key is",
            "See who is left: exo discover",
        )
    else:
        change = changes.rotate(path)
        _report(session, "rotate", path, change, "Rotating to the key", f"For each other machine: {_CARRY}")


def _report(
    session: Session,
    verb_name: Literal["new", "join", "rotate", "finish"],
    path: Path,
    change: "Change",
    done: str,
    hint: str,
) -> None:
    """The fingerprint for programs, the sentence for people."""
    output = session.output
    if output.json:
        from exo_cli.schemas.events import line
        from exo_cli.schemas.key import KeyChanged

        event = KeyChanged(
            verb=verb_name,
            changed=change.changed,
            path=str(path),
            fingerprints=change.fingerprints,
            dropped=change.dropped,
        )
        output.line(line(event))
        return
    output.line(change.fingerprints[0])
    if change.changed:
        output.note(f"{done} {change.fingerprints[0]} in {path}.")
        for dropped in change.dropped:
            output.note(f"The key {dropped} is no longer valid here.")
        output.hint(hint)
    else:
        output.note(f"Nothing changed: {path} has this key.")


def _show(
    session: Session,
    kind: Literal["cluster", "local"],
    path: Path,
    mode: str | None,
    fingerprints: tuple[str, ...],
) -> None:
    output = session.output
    if output.json:
        from exo_cli.schemas.events import line
        from exo_cli.schemas.key import KeyShown

        rotating = len(fingerprints) > 1
        event = KeyShown(kind=kind, path=str(path), mode=mode, fingerprints=fingerprints, rotating=rotating)
        output.line(line(event))
        return
    if output.quiet:
        output.write("".join(f"{fingerprint}\n" for fingerprint in fingerprints))
        return
    reach = "every machine with this key" if kind == "cluster" else "this machine only (loopback)"
    names = ("fingerprint", "previous")
    rows = [("kind", kind), ("reaches", reach)]
    rows += zip(names, fingerprints, strict=False)
    rows += [("rotating", "yes" if len(fingerprints) > 1 else "no"), ("file", str(path))]
    rows += [("mode", mode or "not made yet")]
    output.rows(("what", "value"), rows)
    if kind == "local":
        output.hint("One key makes several machines a cluster: exo key new")
    elif len(fingerprints) > 1:
        output.hint("When every machine has joined: exo key rotate --finish")


def _write_bundle(to: Path, secrets: "Secrets") -> None:
    """A new file; the same keys in it already are as good."""
    from exo_cli.errors import NotFound
    from exo_cli.trust import keyfile

    try:
        if keyfile.read(to) == secrets:
            return
    except NotFound:
        pass
    keyfile.create(to, secrets)


def _read_bundle(source: str) -> "Secrets":
    import shlex
    import sys

    from exo_cli.errors import NotAuthorised, NotFound, UsageProblem
    from exo_cli.trust import keyfile

    if source == "-":
        if sys.stdin is None or sys.stdin.isatty():
            raise UsageProblem(
                "the key is not typed on a terminal; standard input must be a pipe", hint=_CARRY
            )
        return keyfile.decode(sys.stdin.buffer.read(keyfile.MAX_BYTES + 1), "standard input")
    try:
        return keyfile.read(Path(source))
    except NotFound as error:
        raise NotFound(error.message, hint=f"To carry a key here: {_CARRY}") from None
    except NotAuthorised as error:
        raise NotAuthorised(
            error.message, hint=f"{error.hint} Or: exo key join - < {shlex.quote(source)}"
        ) from None
