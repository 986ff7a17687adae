"""The data stream's messages and the stage core's, into each other. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_address

from exo_cli.cluster.pairs import is_unix, split_endpoint
from exo_cli.engine.core import Open, Token, TokensBack
from exo_cli.errors import BadData, ExoError, NotAuthorised
from exo_cli.schemas.sampling import Sampling
from exo_cli.trust.private import is_private
from exo_cli.wire import exo_pb2 as pb

MAX_PROMPT = 1 << 22
MAX_BIAS = 4096


@dataclass(frozen=True, slots=True)
class Reach:
    """Where an engine goes when a route says so."""

    unix: bool = False
    """Sockets of the file system, as it listens on one itself; else addresses."""
    private_only: bool = False

    def objection(self, endpoint: str) -> ExoError | None:
        if is_unix(endpoint):
            return None if self.unix else BadData("a route to a socket of this machine's file system")
        try:
            host, _ = split_endpoint(endpoint)
            ip_address(host)
        except ValueError:
            return BadData("a route goes over literal addresses, each with its port")
        if self.private_only and not is_private(host):
            return NotAuthorised(f"--insecure does not speak to {host}: it is not a private address")
        return None


def objection(message: pb.Open, reach: Reach) -> ExoError | None:
    """What the message asks for that no stage does."""
    if len(message.prompt) > MAX_PROMPT:
        return BadData(f"a prompt has at most {MAX_PROMPT} tokens, not {len(message.prompt)}")
    if len(message.sampler.logit_bias) > MAX_BIAS:
        return BadData(f"at most {MAX_BIAS} tokens can have a bias, not {len(message.sampler.logit_bias)}")
    if message.sampler.grammar:
        return BadData("this version does not constrain its output by a grammar")
    return next((said for hop in message.route if (said := reach.objection(hop.endpoint))), None)


def open_of(message: pb.Open) -> Open:
    """The request as the core knows it."""
    sampler = message.sampler
    return Open(
        request=message.request,
        epoch=message.epoch,
        prompt=tuple(message.prompt),
        sampling=Sampling(
            temperature=sampler.temperature,
            top_p=sampler.top_p or 1.0,
            top_k=sampler.top_k,
            min_p=sampler.min_p,
            repetition_penalty=sampler.repetition_penalty or 1.0,
            presence_penalty=sampler.presence_penalty,
            frequency_penalty=sampler.frequency_penalty,
            penalty_window=sampler.penalty_window,
            logit_bias=tuple(sorted(sampler.logit_bias.items())),
            seed=sampler.seed,
            logprobs=sampler.logprobs,
        ),
        max_tokens=message.max_tokens,
        stop_ids=frozenset(message.stop_ids),
        emitted=message.emitted,
        keep_prefix=message.keep_prefix,
    )


def token_out(token: Token, finish: str = "") -> pb.TokenOut:
    return pb.TokenOut(
        request=token.request,
        epoch=token.epoch,
        position=token.position,
        id=token.id,
        logprob=token.logprob,
        top_ids=[each for each, _ in token.top],
        top_logprobs=[logprob for _, logprob in token.top],
        finish=finish,
    )


def tokens_out(tokens: Sequence[Token], finish: Mapping[int, str], step: int = 0) -> pb.Tokens:
    """Tokens, each with why it is its request's last one, if it is."""
    rows = [token_out(token, finish.get(token.request, "")) for token in tokens]
    return pb.Tokens(rows=rows, step=step)


def tokens_back(message: pb.Tokens) -> TokensBack:
    return TokensBack(
        step=message.step,
        tokens=tuple(Token(row.request, row.epoch, row.position, row.id) for row in message.rows),
        finished=tuple((row.request, row.epoch) for row in message.rows if row.finish),
    )


def refused(request: int, epoch: int, error: ExoError, node: str) -> pb.Refused:
    return pb.Refused(
        request=request,
        epoch=epoch,
        node=node,
        code=error.code,
        message=error.message,
        hint=error.hint or "",
        exit=int(error.exit),
        bytes_needed=getattr(error, "needed_bytes", 0),
        bytes_free=getattr(error, "free_bytes", 0),
    )
