"""junit.xml: one test case for each gate, for the test views of CI systems."""

from collections.abc import Sequence
from xml.etree import ElementTree

from fsrp_edge import wording
from fsrp_edge.report.schema import GateResult


def render_junit(results: Sequence[GateResult], title: str) -> str:
    """JUnit XML of gates.

    Args:
        results: the judged gates.
        title: of the run; names the test suite.
    """
    failures = str(sum(not result.passed for result in results))
    counts = {"tests": str(len(results)), "failures": failures, "errors": "0"}
    root = ElementTree.Element("testsuites", counts)
    suite = ElementTree.SubElement(root, "testsuite", {"name": wording.printable(title), **counts})
    for result in results:
        # Test views tell cases apart by class and name, of all runs of a job.
        attributes = {"classname": wording.printable(title), "name": wording.printable(result.gate)}
        case = ElementTree.SubElement(suite, "testcase", attributes)
        message = wording.printable(result.message)
        if result.passed:
            ElementTree.SubElement(case, "system-out").text = message
        else:
            ElementTree.SubElement(case, "failure", {"message": message}).text = message
    ElementTree.indent(root)
    text: bytes = ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)
    return text.decode() + "\n"
