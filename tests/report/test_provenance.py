import getpass
import platform
from datetime import UTC, datetime
from importlib.metadata import version

from fsrp_edge.report.provenance import provenance


def test_versions_are_those_that_are_installed() -> None:
    found = provenance(datetime.now(UTC))
    assert found.python == platform.python_version()
    assert found.libraries["torch"] == version("torch")
    assert all(found.libraries.values())
    assert found.machine.cores >= 1 and found.machine.cpu


def test_nothing_names_the_machine_or_its_user() -> None:
    text = provenance(datetime.now(UTC)).model_dump_json()
    names = {platform.node(), getpass.getuser()} - {"", "root", "localhost"}
    assert not [name for name in names if name in text]
