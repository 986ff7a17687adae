"""Hypothesis strategies that build every shape of a topology."""

from hypothesis import strategies as st

from exo_cli.schemas.topology import Address, Batch, Link, LoadedStage, Memory, Node, Rate, Topology

SIZES = st.integers(0, 2**63 - 1)
COUNTERS = st.integers(0, 2**40)
SPEEDS = st.floats(0, 2.0**62, allow_nan=False, allow_infinity=False)
WORDS = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
KINDS = st.sampled_from(
    ["thunderbolt", "ethernet", "wifi", "loopback", "bridge", "tunnel", "virtual", "infiniband", "unknown"]
)

ADDRESSES = st.builds(Address, interface=WORDS, kind=KINDS, ip=WORDS)
NODES = st.builds(
    Node,
    id=WORDS,
    name=WORDS,
    state=st.sampled_from(["ready", "draining", "suspect", "dead"]),
    role=st.sampled_from(["shard", "announce"]),
    endpoint=WORDS,
    host=WORDS,
    boot=COUNTERS,
    seq=COUNTERS,
    version=WORDS,
    protocol=st.integers(0, 9),
    addresses=st.lists(ADDRESSES, max_size=2).map(tuple),
    os=WORDS,
    chip=WORDS,
    cores=st.integers(0, 512),
    backend=WORDS,
    memory=st.builds(Memory, ram_bytes=SIZES, limit_bytes=SIZES, free_bytes=SIZES),
    loopback_bytes_per_s=st.none() | SPEEDS,
    rates=st.lists(
        st.builds(
            Rate,
            format=WORDS,
            decode_bytes_per_s=SPEEDS,
            prefill_flop_per_s=SPEEDS,
            step_s=st.none() | st.floats(0, 10),
            batches=st.lists(st.builds(Batch, rows=st.integers(0, 64), times=SPEEDS), max_size=2).map(tuple),
            measured_unix_ms=COUNTERS,
        ),
        max_size=2,
    ).map(tuple),
    stages=st.lists(
        st.builds(
            LoadedStage,
            model=WORDS,
            layers=st.tuples(st.integers(0, 99), st.integers(0, 99)),
            state=st.sampled_from(["loading", "ready", "failed", "unloading"]),
            kv_free_bytes=st.none() | SIZES,
        ),
        max_size=2,
    ).map(tuple),
    seen_unix_ms=COUNTERS,
)
LINKS = st.builds(
    Link,
    from_=WORDS,
    to=WORDS,
    interface=st.none() | WORDS,
    kind=st.none() | KINDS,
    address=st.none() | WORDS,
    rtt_us_p50=st.none() | SPEEDS,
    rtt_us_p99=st.none() | SPEEDS,
    bytes_per_s=st.none() | SPEEDS,
    limited_by=st.sampled_from([None, "transport"]),
    boot=COUNTERS,
    seq=COUNTERS,
    error=st.none() | WORDS,
    measured_unix_ms=COUNTERS,
)
TOPOLOGIES = st.builds(
    Topology,
    generation=COUNTERS,
    nodes=st.lists(NODES, max_size=4, unique_by=lambda node: node.id).map(tuple),
    links=st.lists(LINKS, max_size=4, unique_by=lambda link: f"{link.from_} to {link.to}").map(tuple),
)
