"""The command line: what a user can mistype is refused in one sentence, before anything runs."""

import pytest
import yaml

from rootsam_lib.__main__ import NOTEBOOKS, PROFILES, check_parameters, load_profile, main, notebook_parameters

KNOWN = {"a.ipynb": {"SEED": 0, "LR": 0.5, "DATA": "synthetic", "FLAG": True}}


def refused(capsys, *arguments) -> str:
    assert main(list(arguments)) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1 and "Traceback" not in said
    return said


def test_unknown_parameter_names_the_closest(capsys):
    assert "did you mean STAGE1_EPOCHS?" in refused(capsys, "tutorial", "-p", "STAGE1_EPOCH", "3")
    assert "choose from" in refused(capsys, "tutorial", "-p", "zzz", "3")


def test_wrong_type_profile_and_number(capsys):
    assert "must be float" in refused(capsys, "tutorial", "-p", "LR", "fast")
    assert "must be int" in refused(capsys, "tutorial", "-p", "SEED", "1.5")
    assert "choose one of quick" in refused(capsys, "tutorial", "--profile", "huge")
    assert "--profile" in refused(capsys, "tutorial", "-p", "PROFILE", "mine")
    assert "names no notebook" in refused(capsys, "tutorial", "--only", "77")
    assert "no such folder" in refused(capsys, "tutorial", "-p", "DATA_DIR", "nowhere")
    assert "of the defaults only" in refused(capsys, "tutorial", "--update", "-p", "SEED", "3")
    assert "no results file" in refused(capsys, "table", "nowhere.json")


def test_values_are_read_as_python_does():
    given = {"lr": 1e-4, "SEED": 3, "DATA": "folder", "FLAG": False}
    assert check_parameters(given, KNOWN) == {"LR": 1e-4, "SEED": 3, "DATA": "folder", "FLAG": False}
    assert check_parameters({"LR": 1, "SEED": 2.0, "DATA": 2024}, KNOWN) == {"LR": 1, "SEED": 2, "DATA": "2024"}
    for bad in ({"SEED": "3"}, {"SEED": True}, {"SEED": float("inf")}, {"FLAG": 1}):
        with pytest.raises(ValueError):
            check_parameters(bad, KNOWN)


def test_every_profile_names_real_parameters_of_the_right_type():
    known = {path.name: notebook_parameters(path) for path in NOTEBOOKS.glob("*.ipynb")}
    for name in yaml.safe_load(PROFILES.read_text()):
        check_parameters(load_profile(name), known)


def test_lessons_that_train_share_their_defaults():
    first, *others = (notebook_parameters(next(NOTEBOOKS.glob(f"{n}_*.ipynb"))) for n in ("03", "04", "05"))
    for other in others:
        assert first.items() <= other.items()
