import json
from pathlib import Path

import pytest

from docs.generated import SCHEMAS, packaged_page

DOCS = Path(__file__).parents[1] / "docs"
FIX = "the package changed; write its documentation again with: python -m docs.generated"


@pytest.mark.parametrize("name", SCHEMAS)
def test_published_schema_is_current(name):
    assert json.loads((DOCS / name).read_text(encoding="utf-8")) == SCHEMAS[name], FIX


def test_page_of_profiles_is_current():
    assert (DOCS / "targets.md").read_text(encoding="utf-8") == packaged_page(), FIX
