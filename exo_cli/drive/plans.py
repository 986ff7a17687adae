"""plan.json as a driver or a node reads it. Knows nothing of how a plan is made or carried out."""

from pathlib import Path
from typing import Final

from msgspec import structs

from exo_cli.errors import InputOutput, NotFound
from exo_cli.fetch.seek import seek
from exo_cli.fetch.stores import Stores
from exo_cli.schemas.decode import MAX_DOCUMENT_BYTES, decode
from exo_cli.schemas.plan import SCHEMA, Plan

_HINT: Final = "exo schema plan.json says what it holds; without --plan exo run makes one itself."


def read_plan(path: Path) -> Plan:
    """The plan in a file, checked for being one."""
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_DOCUMENT_BYTES + 1)
    except FileNotFoundError as error:
        raise NotFound(f"there is no plan at {path}", hint="Check the path, or leave --plan out.") from error
    except OSError as error:
        raise InputOutput(
            f"cannot read {path}: {(error.strerror or str(error)).lower()}",
            hint="Check the path, or leave --plan out.",
        ) from error
    return decode(data, Plan, schema=SCHEMA, where=str(path), hint=_HINT)


def of_this_machine(plan: Plan, stores: Stores) -> Plan:
    """A plan that was made before anybody had the model, for the one of that name that is here now."""
    if plan.model.digest:
        return plan
    name = plan.model.name
    path = seek(name, stores.hub).path
    if path is None:
        raise NotFound(
            f"the plan was made before anybody had {name}, so it does not say which weights it means, and "
            "there is no model of that name on this machine",
            hint=f"exo fetch {name}, then start again; or make the plan anew where {name} is.",
        )
    return structs.replace(plan, model=structs.replace(plan.model, digest=stores.open(path).digest))
