"""What the hub's library and its HTTP client raise, as our errors. Knows nothing of what was asked for."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, cast

from exo_cli.errors import BadData, ExoError, InputOutput, NotAuthorised, NotFound, TryAgain, Unavailable
from exo_cli.fetch.patience import Passing, retry_after_s
from exo_cli.fetch.seek import Sought

if TYPE_CHECKING:
    from huggingface_hub.errors import HfHubHTTPError


def network_errors() -> type[Exception]:
    """The base of all of the client's exceptions, whichever client the library has."""
    from huggingface_hub.errors import HfHubHTTPError

    return cast(type[Exception], HfHubHTTPError.__bases__[0])


def passing_errors() -> type[Exception]:
    """Those of the line: broken, silent, cut off. Asking again may help."""
    module = sys.modules[network_errors().__module__.partition(".")[0]]
    return cast(type[Exception], module.TransportError)


@contextmanager
def explained(sought: Sought, endpoint: str) -> Iterator[None]:
    """The library's exceptions as ours; as Passing what may be over soon."""
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

    repository = sought.repository
    try:
        yield
    except OfflineModeIsEnabled as error:
        raise offline(sought) from error
    except HfHubHTTPError as error:
        raise _by_status(error, sought, endpoint) from error
    except HFValidationError as error:
        raise sought.missing() from error
    except passing_errors() as error:
        raise Passing(_no_answer(sought, endpoint, error)) from error
    except network_errors() as error:
        raise _no_answer(sought, endpoint, error) from error
    except OSError as error:
        if error.errno is None:
            # The library's own: no answer about a file.
            raise _no_answer(sought, endpoint, error.__cause__ or error) from error
        raise InputOutput(f"{repository} cannot be kept: {(error.strerror or '').lower()}") from error
    except (ValueError, TypeError, KeyError) as error:
        raise BadData(f"{endpoint} does not answer as a hub does: {error}"[:300]) from error


def offline(sought: Sought, asked: Sequence[str] = ()) -> NotFound:
    """`asked` are the neighbours that do not have it either."""
    missing = sought.missing()
    nor = f"; {', '.join(asked)} {'does' if len(asked) == 1 else 'do'} not have it either" if asked else ""
    return NotFound(
        f"{missing.message}{nor}; HF_HUB_OFFLINE or --offline keeps the hub from being asked",
        hint=missing.hint,
    )


def _no_answer(sought: Sought, endpoint: str, error: BaseException) -> Unavailable:
    said = str(error).split("\n")[0][:200] or type(error).__name__
    return Unavailable(
        f"{endpoint} does not answer about {sought.repository}: {said}",
        hint="Is this machine on the internet? exo fetch --offline asks the other nodes alone; "
        "what came is kept.",
    )


def _by_status(error: "HfHubHTTPError", sought: Sought, endpoint: str) -> ExoError | Passing:
    status = error.response.status_code
    after_s = retry_after_s(error.response.headers.get("retry-after"))
    if status in (401, 403):
        return NotAuthorised(
            f"{endpoint} does not let you have {sought.repository} ({status})",
            hint=f"Accept its licence at {endpoint}/{sought.repository}, and set HF_TOKEN to your token. "
            "It says the same of names that do not exist.",
        )
    if status == 404:
        missing = sought.missing()
        at = f"{sought.repository}@{sought.revision}"
        return NotFound(f"{missing.message}, {endpoint} (it has no {at})", hint=missing.hint)
    if status == 429:
        busy = TryAgain(f"{endpoint} wants fewer requests", hint="Wait a minute. HF_TOKEN gives you more.")
        return Passing(busy, after_s)
    trouble = Unavailable(
        f"{endpoint} answers {status} about {sought.repository}", hint="Try again later: what came is kept."
    )
    return Passing(trouble, after_s) if status in (408, 500, 502, 503, 504) else trouble
