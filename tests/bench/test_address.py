import sys
from pathlib import Path

import pytest

from fsrp_edge.bench.address import Address, parse_address
from fsrp_edge.errors import BadInputError


@pytest.mark.parametrize(
    ("text", "address", "name"),
    [
        ("local", Address("local", python=sys.executable), "local"),
        ("local?python=/usr/bin/python3", Address("local", python="/usr/bin/python3"), "local"),
        ("ssh://pi4", Address("ssh", "pi4"), "ssh://pi4"),
        ("ssh://pi@pi4.local:2222", Address("ssh", "pi4.local", "pi", 2222), "ssh://pi4.local:2222"),
        ("ssh://pi@[fe80::1%eth0]", Address("ssh", "fe80::1%eth0", "pi"), "ssh://[fe80::1%eth0]"),
        (
            "ssh://pi4?python=~/venv/bin/python&cache=.cache/fsrp-edge",
            Address("ssh", "pi4", python="venv/bin/python", cache=".cache/fsrp-edge"),
            "ssh://pi4",
        ),
        ("ssh://pi4?tool=~/benchmark_model", Address("ssh", "pi4", tool="./benchmark_model"), "ssh://pi4"),
        ("ssh://pi@[fe80::1%br-lan.7]", Address("ssh", "fe80::1%br-lan.7", "pi"), "ssh://[fe80::1%br-lan.7]"),
        ("local?python=~/venv/bin/python", Address("local", python=f"{Path.home()}/venv/bin/python"), "local"),
        ("ssh://pi4?python=/opt/c++/a%20b", Address("ssh", "pi4", python="/opt/c++/a b"), "ssh://pi4"),
        ("adb:", Address("adb"), "adb:"),
        ("adb:emulator-5554", Address("adb", "emulator-5554"), "adb:emulator-5554"),
        ("adb:192.168.1.5:5555", Address("adb", "192.168.1.5:5555"), "adb:192.168.1.5:5555"),
    ],
)
def test_addresses(text, address, name):
    assert parse_address(text) == address
    assert address.name == name


def test_a_place_names_the_interpreter_only_where_the_user_did():
    """Finished stages of a run are found again by it."""
    for text in ("local", "ssh://pi4", "adb:", "ssh://pi4?cache=kept"):
        assert parse_address(text).place == text.partition("?")[0]
    assert parse_address("ssh://pi@pi4?python=venv/bin/python").place == "ssh://pi4?python=venv/bin/python"
    assert parse_address("local?python=/opt/python").place == "local?python=/opt/python"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "pi4",
        "http://pi4",
        "ssh://",
        "ssh://-oProxyCommand=true",
        "ssh://-l@pi4",
        "ssh://pi4;reboot",
        "ssh://pi4 reboot",
        "ssh://pi4:0",
        "ssh://pi4:70000",
        "ssh://pi4\n",
        "ssh://pi4?python=",
        "ssh://pi4?python=-c",
        "ssh://pi4?python=a&python=b",
        "ssh://pi4?python=a\nb",
        "ssh://pi4?colour=red",
        "ssh://pi4?python",
        "ssh://pi4?python=a&",
        "adb:-s",
        "adb:a b",
        "local?cache=x",
    ],
)
def test_what_is_no_address_is_refused(text):
    with pytest.raises(BadInputError, match=r"ssh://\[user@\]host|not a path on the device"):
        parse_address(text)
