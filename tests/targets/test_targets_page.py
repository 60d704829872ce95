import re
from pathlib import Path

from docs.generated import markdown
from fsrp_edge.targets.load import load_target, target_names
from fsrp_edge.targets.rows import value_rows

PAGE = Path(__file__).parents[2] / "docs" / "targets.md"


def test_page_has_a_section_of_each_profile():
    sections = re.findall(r"^## (\S+)$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert tuple(sections) == target_names()


def test_rows_hold_values_with_their_units_notes_and_sources():
    rows = {label: (value, source) for label, value, source in value_rows(load_target("raspberry-pi-4"))}
    assert rows["Cortex-A72 clock, GHz"] == ("1.8 (1.5 on boards of the first revision)", "mlperf")
    assert rows["Cortex-A72 L2 data cache shared by 4, KiB"] == ("1024", "bcm2711")
    assert rows["Cortex-A72 fp32 peak, 10⁹ operations/s"][0] == "57.6"


def test_a_variant_is_shown_by_what_it_changes():
    page = markdown([(load_target("jetson-nano"), load_target("jetson-nano@5W"))])
    section = page[page.index("### jetson-nano@5W") :]
    assert "| Cortex-A57 cores | 2 |" in section
    assert "bandwidth" not in section


def test_a_bar_in_a_value_does_not_end_its_cell():
    nano = load_target("jetson-nano")
    changed = nano.model_copy(update={"soc": nano.soc.model_copy(update={"value": "a|b"})})
    assert "a\\|b" in markdown([(changed,)])
