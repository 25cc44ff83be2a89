"""The defects of `tests.mutation` can still be put into the package: each edit has one place."""

import pytest

from tests.mutation import DEFECTS, ROOT


@pytest.mark.parametrize("defect", DEFECTS, ids=lambda defect: defect.name)
def test_every_edit_matches_its_file_once(defect):
    files: dict[str, str] = {}
    for file, old, new in defect.edits:
        text = files.get(file) or (ROOT / "bi_compile" / file).read_text()
        assert text.count(old) == 1, f"{file} holds {old!r} {text.count(old)} times"
        files[file] = text.replace(old, new)


def test_every_defect_has_a_test_that_exists():
    assert len({defect.name for defect in DEFECTS}) == len(DEFECTS) >= 25
    for defect in DEFECTS:
        assert (ROOT / defect.tests[0]).exists(), defect.tests[0]
