import base64
import json
import re
import zlib
from dataclasses import replace

import numpy as np
import pytest
import torch

from tdsm.base.errors import UsageError
from tdsm.explore.export import chosen_images, export, exported_page
from tests.explore.test_studio import random_studio
from tests.tinyrun import tdsm


def inside(page):
    """Read what a page holds: its description, and the arrays of every image."""
    held = json.loads(re.search(r'<script type="application/json" id="inside">(.*?)</script>', page, re.S)[1])
    images = []
    for number, entry in enumerate(held["images"]):
        text = re.search(rf'<script type="text/plain" id="image-{number}">(.*?)</script>', page)[1]
        content = zlib.decompress(base64.b64decode(text))
        arrays = {}
        for name, facts in entry.items():
            if isinstance(facts, dict):
                kind = np.int8 if facts["signed"] else np.uint8
                whole = np.frombuffer(content, kind, int(np.prod(facts["shape"])), facts["start"])
                arrays[name] = facts["low"] + facts["step"] * torch.tensor(whole.reshape(facts["shape"])).double()
        images.append(arrays)
    return held, images


def test_what_is_inside_is_what_the_studio_says_within_the_error_it_states():
    studio = random_studio(count=8)
    page, words = exported_page(studio, [(0, 3), (0, 5)], ["solo"], levels=15)
    held, images = inside(page)
    stated = float(re.search(r"off by more than ([\d.]+)\.", words)[1])
    assert held["about"]["footnote"].endswith(words)
    for row, arrays in zip((3, 5), images, strict=True):
        view = studio.view(0, row, studio.methods.index("additive"), held["about"]["first_size"])
        assert (arrays["additive"] - view.components[0]).abs().max() <= stated + 5e-5
        step = held["images"][0]["additive"]["step"]
        assert stated <= 0.51 * max(step, held["images"][1]["additive"]["step"]) + 1e-4
        levels = (view.reconstruction.max() - view.reconstruction.min()) / 255
        assert (arrays["reconstruction"] - view.reconstruction[0]).abs().max() <= 0.51 * levels
        assert (arrays["image"] - studio.image(0, row)[0].movedim(0, -1)).abs().max() <= 0.51 * 2 / 255
        assert arrays["solo"].shape == arrays["additive"].shape


def test_shares_of_class_scores_go_along(studio):
    held, images = inside(exported_page(studio, [(0, 4)])[0])
    assert [head["name"] for head in held["about"]["heads"]] == ["tdsm-avg", "tokens-avg"]
    falls = studio.falls(0, 4, 0)
    torch.testing.assert_close(
        images[0]["shares-0"].float(), falls.by_token, atol=float(falls.by_token.abs().max()) / 250, rtol=0
    )
    assert held["listing"]["predicted"]["tdsm-avg"] == [studio.shelves[0].predicted["tdsm-avg"][4]]


def test_as_many_levels_as_the_size_allows(monkeypatch):
    studio = random_studio(count=4)
    images = [(0, row) for row in range(4)]
    fine = exported_page(studio, images)[0]
    assert fine == exported_page(studio, images, levels=127)[0]
    monkeypatch.setattr("tdsm.explore.export.WANTED_BYTES", 1)
    assert exported_page(studio, images)[0] == exported_page(studio, images, levels=7)[0]
    assert len(exported_page(studio, images)[0]) < len(fine)


def test_hostile_names_stay_text():
    studio = random_studio(count=3)
    hostile = "</script><script>alert(1)</script>"
    page, _ = exported_page(replace(studio, title=hostile, classes=(hostile, "b", "c")), [(0, 0)])
    assert hostile not in page
    assert inside(page)[0]["about"]["classes"][0] == hostile


def test_a_page_for_a_file_may_ask_nobody():
    page, _ = exported_page(random_studio(count=1), [(0, 0)])
    policy = re.search(r'http-equiv="Content-Security-Policy" content="(.*?)"', page)[1]
    assert "default-src 'none'" in policy
    assert "connect-src" not in policy
    assert not re.search(r"https?://", page)


def test_images_are_chosen_by_number_or_drawn_of_every_class():
    studio = random_studio(count=30)
    assert chosen_images(studio, 9, (4, 2)) == [(0, 4), (0, 2)]
    drawn = [row for _, row in chosen_images(studio, 9)]
    assert sorted(row % 3 for row in drawn) == [0, 0, 0, 1, 1, 1, 2, 2, 2]


def test_nothing_to_export_and_methods_that_do_not_suit_are_named(tmp_path):
    studio = random_studio(count=2)
    with pytest.raises(UsageError, match="export: no image is chosen"):
        export(studio, tmp_path, [])
    with pytest.raises(UsageError, match="export: mixture cannot be shown of this field, expected solo, additive"):
        export(studio, tmp_path, [(0, 0)], ["mixture"])
    assert list(tmp_path.iterdir()) == []


def test_the_verb_writes_one_page(run, tmp_path, capsys):
    assert tdsm("explore", run.path, "--export", tmp_path / "out", "--images", 3, "--methods", "attention") == 0
    printed = capsys.readouterr()
    assert printed.out == f"{tmp_path / 'out' / 'index.html'}\n"
    assert "3 images. Components are rounded to steps of" in printed.err
    held, _ = inside((tmp_path / "out" / "index.html").read_text())
    assert [method["name"] for method in held["about"]["methods"]] == ["additive", "attention"]
