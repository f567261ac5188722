"""ImageNet-C's folders, and mCE against numbers by hand."""

from __future__ import annotations

import pytest

from utils.errors import UserError
from utils.scoring.corruptions import ALEXNET_ERROR, corruption_errors, corruption_folders, mean_corruption_error


def rows_of(errors: dict[str, list[float]]) -> list[dict]:
    rows = []
    for name, of_severity in errors.items():
        for severity, error in enumerate(of_severity, start=1):
            rows.append({"corruption": name, "severity": severity, "top1": 100 - error})
    return rows


def test_alexnet_itself_has_100_percent():
    rows = rows_of({name: [100 * error] * 5 for name, error in ALEXNET_ERROR.items()})
    errors = corruption_errors(rows)
    assert len(errors) == 15 and errors == pytest.approx(dict.fromkeys(ALEXNET_ERROR, 100.0))
    assert mean_corruption_error(errors) == pytest.approx(100)


def test_numbers_by_hand():
    """Fog: (10 + 20 + 30 + 40 + 50) / (5 × 0.819324) = 36.6155; the others like AlexNet: (36.6155 + 14 × 100) / 15."""
    errors = {name: [100 * error] * 5 for name, error in ALEXNET_ERROR.items()} | {"fog": [10, 20, 30, 40, 50]}
    found = corruption_errors(rows_of(errors))
    assert found["fog"] == pytest.approx(36.61555, abs=1e-4)
    assert mean_corruption_error(found) == pytest.approx(95.77437, abs=1e-4)


def test_what_is_not_whole_has_no_mean():
    errors = {name: [50.0] * 5 for name in ALEXNET_ERROR}
    without_one = {name: values for name, values in errors.items() if name != "snow"}
    assert mean_corruption_error(corruption_errors(rows_of(without_one))) is None
    four_severities = corruption_errors(rows_of(errors | {"snow": [50.0] * 4}))
    assert "snow" not in four_severities and mean_corruption_error(four_severities) is None
    extra = corruption_errors(rows_of(errors | {"speckle_noise": [50.0] * 5}))
    assert "speckle_noise" not in extra and mean_corruption_error(extra) is not None


def test_folders_come_in_the_order_of_the_paper_and_others_last(tmp_path):
    for folder in ("aardvark/2", "fog/3", "fog/1", "gaussian_noise/5", ".hidden/1"):
        (tmp_path / folder / "ant").mkdir(parents=True)
    assert corruption_folders(str(tmp_path)) == [("gaussian_noise", 5), ("fog", 1), ("fog", 3), ("aardvark", 2)]


@pytest.mark.parametrize("folder", ["fog/6/ant", "val/ant", "fog"])
def test_other_folders_are_refused(folder, tmp_path):
    (tmp_path / folder).mkdir(parents=True)
    with pytest.raises(UserError, match="corruption/severity/class"):
        corruption_folders(str(tmp_path))
    with pytest.raises(UserError, match="nowhere: cannot be read"):
        corruption_folders("nowhere")
