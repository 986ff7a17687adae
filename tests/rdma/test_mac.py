"""Cases of one Mac that no capture shows: made from a healthy one, one text changed at a time."""

import pytest

from exo_cli.rdma.capture import Capture, Said, read
from exo_cli.rdma.diagnose import diagnose
from exo_cli.schemas.doctor import RdmaCheck
from exo_cli.schemas.findings import Finding
from tests.support.captures import CAPTURES, replaced, slugs, troubles, with_text

(HEALTHY,) = read(CAPTURES / "readable-reordered")
PAIR = read(CAPTURES / "mac-two-healthy")


def first(*captures: Capture) -> Finding:
    return troubles(diagnose(captures))[0]


def unread(check: RdmaCheck) -> dict[str, str]:
    return {
        finding.seen.split(":")[0].removeprefix("could not read "): finding.level
        for finding in check.findings
        if finding.id in ("unreadable", "not-read")
    }


def test_a_mac_with_an_intel_processor() -> None:
    text = b"machdep.cpu.brand_string: Intel(R) Core(TM) i7\nhw.optional.arm64: 0\n"
    found = first(with_text(HEALTHY, "sysctl", text))
    assert found.id == "not-apple-silicon"
    assert found.do is None


def test_an_old_macos_on_thunderbolt_4_is_not_told_to_update() -> None:
    (capture,) = read(CAPTURES / "mac-thunderbolt-4")
    old = with_text(
        capture, "sw_vers", b"ProductName:\t\tmacOS\nProductVersion:\t\t15.6\nBuildVersion:\t\t24G84\n"
    )
    assert slugs(diagnose([old])) == {"thunderbolt-4"}


def test_all_ports_busy_at_40_is_told_from_the_chip_or_not_at_all() -> None:
    (capture,) = read(CAPTURES / "mac-thunderbolt-4-devices")
    busy = replaced(capture, "thunderbolt", "Up to 40 Gb/s", "40 Gb/s")
    assert first(busy).id == "thunderbolt-4"
    pro = with_text(busy, "sysctl", b"machdep.cpu.brand_string: Apple M4 Pro\nhw.optional.arm64: 1\n")
    assert "thunderbolt-4" not in slugs(diagnose([pro]))


def test_the_first_macos_with_rdma_sends_small_frames() -> None:
    found = diagnose([replaced(HEALTHY, "sw_vers", "26.5.2", "26.2")])
    assert slugs(found) == {"small-frames"}
    assert found.would_work


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ('{"mlx":null,"mlx_lm":null,"backends":{},"librdma":true}', "MLX is not installed"),
        ('{"mlx":"0.32.4","mlx_lm":null,"backends":{"jaccl":false},"librdma":true}', "has no jaccl"),
        ('{"mlx":"0.32.4","mlx_lm":null,"backends":{"jaccl":true},"librdma":false}', "does not load"),
    ],
)
def test_an_mlx_without_jaccl(text: str, seen: str) -> None:
    found = first(with_text(HEALTHY, "mlx", text.encode()))
    assert found.id == "jaccl-missing"
    assert seen in found.seen


@pytest.mark.parametrize("exit_code", [0, 1])
def test_disabled_counts_with_any_exit_code(exit_code: int) -> None:
    (capture,) = read(CAPTURES / "mac-disabled")
    assert first(with_text(capture, "rdma_ctl", b"disabled\n", exit_code=exit_code)).id == "rdma-disabled"


def test_the_limits_of_the_devices_are_told() -> None:
    (limits,) = (each for each in diagnose([HEALTHY]).findings if each.id == "limits")
    assert limits.seen == "each device has 11 queue pairs and 100 memory regions"


@pytest.mark.parametrize("value", ["0", ""])
def test_fast_synch_that_is_off_is_no_warning(value: str) -> None:
    text = f"MLX_METAL_FAST_SYNCH={value}\n".encode()
    assert slugs(diagnose([with_text(HEALTHY, "environment", text)])) == set()


def test_a_port_in_between_is_not_active_either() -> None:
    found = first(replaced(HEALTHY, "ibv_devinfo", "PORT_ACTIVE (4)", "PORT_INIT (2)"))
    assert (found.id, "PORT_INIT" in found.seen) == ("port-down", True)


def test_a_slow_link_says_that_the_other_end_is_the_cause() -> None:
    slow = replaced(HEALTHY, "thunderbolt", '"80 Gb/s"', '"40 Gb/s"')
    down = replaced(slow, "ibv_devinfo", "PORT_ACTIVE (4)", "PORT_DOWN (1)")
    found = first(down)
    assert found.id == "port-down"
    assert "40 Gb/s" in (found.means or "")


def test_a_text_that_was_not_captured_or_not_in_time_concludes_nothing() -> None:
    without = Capture(
        "darwin", "m", {name: said for name, said in HEALTHY.texts.items() if name != "rdma_ctl"}
    )
    found = diagnose([without])
    assert not found.would_work
    assert slugs(found) == {"unreadable"}
    assert "not captured" in troubles(found)[0].seen
    late = Capture("darwin", "m", {**HEALTHY.texts, "rdma_ctl": Said(124, there=False)})
    assert "in time" in first(late).seen


def test_texts_that_the_verdict_does_not_need_may_be_missing() -> None:
    needed = ("sw_vers", "thunderbolt", "rdma_ctl", "ibv_devices", "ibv_devinfo", "hardware_ports")
    kept = {name: HEALTHY.texts[name] for name in (*needed, "ifconfig", "mlx")}
    found = diagnose([Capture("darwin", "m", kept)])
    assert found.would_work
    assert unread(found) == {"sysctl": "info", "routes": "info", "environment": "info"}


def test_after_a_cause_that_ends_it_all_other_texts_do_not_matter() -> None:
    (capture,) = read(CAPTURES / "mac-thunderbolt-4")
    found = diagnose([with_text(capture, "ifconfig", b"what?\n")])
    assert slugs(found) == {"thunderbolt-4"}
    assert unread(found)["ifconfig"] == "info"


def test_two_texts_that_contradict_each_other_are_both_useless() -> None:
    fewer = b"    device          \t   node GUID\n    ------          \t----------------\n"
    found = diagnose([with_text(HEALTHY, "ibv_devices", fewer)])
    assert slugs(found) == {"unreadable"}
    assert "ibv_devinfo" in unread(found)


def test_gids_at_the_end_of_a_text_that_may_be_cut_off() -> None:
    text = HEALTHY.texts["ibv_devinfo"].output.replace(b"\r", b"")
    whole = b"".join(line for line in text.splitlines(keepends=True) if b"::ffff:" not in line)
    # en2 comes last here and has an address: without an empty line after it the text may have gone on.
    assert slugs(diagnose([with_text(HEALTHY, "ibv_devinfo", whole)])) == {"unreadable"}
    ended = diagnose([with_text(HEALTHY, "ibv_devinfo", whole + b"\n")])
    assert slugs(ended) == {"no-ipv4-gid"}


@pytest.mark.parametrize(
    ("said", "means"),
    [
        ("[jaccl] Changing queue pair to RTR failed with errno 60", "ETIMEDOUT"),
        ("[jaccl] Changing queue pair to RTR failed with errno 22", "EINVAL"),
        ("[jaccl] Creating the queue pair failed with errno 102.", "EOPNOTSUPP"),
        ("[jaccl] Recv failed with errno=2", "another rank ended"),
        ("[jaccl] Couldn't allocate protection domain", "no protection domain"),
        ("[jaccl] Something that is new", "nobody has written down"),
    ],
)
def test_an_error_that_nothing_explains_is_told_with_its_meaning(said: str, means: str) -> None:
    found = first(with_text(HEALTHY, "jaccl_error", f"{said}\n".encode(), exit_code=1))
    assert found.id == "attempt-failed"
    assert means in (found.means or "")


def test_an_error_number_means_something_only_with_what_was_attempted() -> None:
    found = first(with_text(HEALTHY, "jaccl_error", b"[jaccl] Sending failed with errno 16\n", exit_code=1))
    assert found.id == "attempt-failed"


def test_ends_in_different_networks_and_a_route_that_leads_elsewhere() -> None:
    one, two = PAIR
    apart = replaced(two, "ifconfig", "192.168.0.2 netmask 0xfffffffc", "192.168.7.2 netmask 0xfffffffc")
    assert slugs(diagnose([one, apart])) == {"subnets-differ"}
    routes = one.texts["routes"].output.decode()
    stolen = routes + "192.168.0.2        192.0.2.1          UGHS                  en0\n"
    found = diagnose([with_text(one, "routes", stolen.encode()), two])
    assert [(each.id, each.nodes) for each in troubles(found)] == [("wrong-interface", ("mac-1",))]
    assert "en0" in troubles(found)[0].seen
    assert found.would_work


def test_a_rank_that_shares_no_network_is_not_found_by_the_first() -> None:
    one, two = PAIR
    alone = replaced(
        two, "ifconfig", "inet 192.0.2.12 netmask 0xffffff00", "inet 198.51.100.2 netmask 0xffffff00"
    )
    # The cable itself is a network in common.
    assert slugs(diagnose([one, alone])) == set()
    apart = replaced(alone, "ifconfig", "192.168.0.2 netmask", "192.168.7.2 netmask")
    assert slugs(diagnose([one, apart])) == {"subnets-differ", "coordinator"}


def test_two_nodes_on_one_mac_count_once() -> None:
    one, two = PAIR
    again = Capture("darwin", "mac-1-2", one.texts)
    found = diagnose([one, again, two])
    assert [node.name for node in found.nodes] == ["mac-1", "mac-2"]
    assert found.would_work


def test_macs_and_linux_machines_do_not_meet() -> None:
    found = diagnose([*PAIR, *read(CAPTURES / "linux-infiniband-healthy")])
    assert "mixed-systems" in slugs(found)
    assert found.uses == "its ring over TCP"


def test_nothing_at_all_is_no_yes() -> None:
    assert not diagnose([]).would_work
