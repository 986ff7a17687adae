import pytest

from exo_cli.errors import NotAuthorised
from exo_cli.trust.private import is_private, refuse_public

PRIVATE = [
    "127.0.0.1", "127.255.255.255", "10.0.0.0", "10.255.255.255", "172.16.0.1", "172.31.255.255",
    "192.168.0.1", "169.254.1.1", "100.64.0.1", "100.127.255.255",
    "::1", "fe80::1", "fe80::1%eth0", "fe80::1%25", "febf::1", "fc00::1", "fdff::1", "::ffff:192.168.1.1",
]  # fmt: skip
PUBLIC = [
    "8.8.8.8", "9.255.255.255", "11.0.0.0", "172.15.255.255", "172.32.0.0", "192.167.255.255", "192.169.0.0",
    "100.63.255.255", "100.128.0.0", "169.253.1.1", "0.0.0.0", "255.255.255.255", "224.0.0.1",
    "::", "2001:db8::1", "2606:4700::1111", "fec0::1", "ff02::1", "::2", "::ffff:8.8.8.8", "2001:db8::1%lo",
]  # fmt: skip
NO_ADDRESS = [
    "",
    "localhost",
    "example.org",
    "10.0.0.1:80",
    "[::1]",
    "10.0.0",
    "10.0.0.01",
    "0x7f.1",
    "%eth0",
    "::1 ",
]


@pytest.mark.parametrize("ip", PRIVATE)
def test_private_addresses(ip: str) -> None:
    assert is_private(ip)
    refuse_public(ip)


@pytest.mark.parametrize("ip", PUBLIC + NO_ADDRESS)
def test_everything_else_is_refused(ip: str) -> None:
    assert not is_private(ip)
    with pytest.raises(NotAuthorised) as caught:
        refuse_public(ip)
    assert caught.value.exit == 77
    assert "exo key new" in str(caught.value.hint)
