"""README's table of methods: every method says where it comes from, and results come from files."""

from __future__ import annotations

import json

import pytest

from mmkd_lite import coverage
from mmkd_lite.methods import METHODS, Method
from mmkd_lite.methods.shre import SHRe
from mmkd_lite.notebook import repository_root

ROOT = repository_root()


@pytest.mark.parametrize("name", METHODS)
def test_every_method_names_its_source_its_file_and_its_notebook(name):
    row = coverage.method_row(name, METHODS[name], "–")
    assert row["source"] and (ROOT / row["file"].strip("`")).is_file()
    assert (ROOT / row["notebook"].partition("(")[2].rstrip(")")).is_file()


def test_the_table_has_every_method_and_what_trains_a_head_of_its_own():
    rows = [line.split(" | ") for line in coverage.method_table(ROOT).splitlines()[2:]]
    names = [row[0].strip("| `") for row in rows]
    assert sorted(names) == sorted([*METHODS, "text_finetuning", "video_training"])
    without = {name for name, row in zip(names, rows, strict=True) if row[-1].startswith("–")}
    assert without == {"quantiser"}  # its scores are of the codes and stand in notebook 17


NO_RECIPE = {"soft_labels", "supervised", "masked_words", "masked_features", "masked_latents"}
"""Classic distillation is shown on a toy classifier, and the papers' teachers are published models."""


@pytest.mark.parametrize("name", METHODS)
def test_every_method_has_a_preset_at_each_scale(name):
    presets = METHODS[name].presets
    assert "laptop" in presets and ("full" in presets) == (name not in NO_RECIPE)


def test_a_class_without_a_source_is_refused():
    class Nameless(Method):
        """Nothing."""

    with pytest.raises(ValueError, match="Nameless needs a source and a notebook"):
        coverage.method_row("nameless", Nameless, "–")


def test_the_result_is_the_main_variant_beside_chance_even_if_another_does_better(tmp_path):
    (tmp_path / "compare").mkdir()
    for variant, recalls in (("both", (10.0, 14.0)), ("kl_only", (30.0, 50.0))):
        for seed, recall in enumerate(recalls):
            scores = {"mean_recall": recall, "chance_i2t_r1": 0.1, "chance_t2i_r1": 0.3}
            record = {"seed": seed, "seconds": 1.0, "configuration": {}}
            path = tmp_path / "compare" / f"shre-{variant}__laptop__seed{seed}.json"
            path.write_text(json.dumps({**record, "metrics": {"composition": scores}}))
    text = coverage.committed_result("shre", SHRe, tmp_path)
    assert text.startswith("both: mean recall 12.0 [") and text.endswith("(chance 0.2 %, n = 2)")
    assert coverage.committed_result("shre", SHRe, tmp_path / "none") == "–"
