from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from gnnmr_dist.data.dataset import open_dataset
from gnnmr_dist.prepare import command

ROWS = [(0, 4, 5, 10, 0), (0, 1, 3, 11, 1), (0, 0, 4, 12, 2), (1, 4, 1, 13, 0), (2, 3, 2, 14, 0)]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "baby"
    folder.mkdir()
    lines = ["userID\titemID\trating\ttimestamp\tx_label", *("\t".join(map(str, row)) for row in ROWS)]
    (folder / "baby.inter").write_text("\n".join(lines) + "\n")
    text = np.eye(6, 4)
    np.save(folder / "text_feat.npy", text)
    np.save(folder / "image_feat.npy", np.arange(12.0).reshape(6, 2))
    return folder


def test_the_toolbox_layout_becomes_a_data_set(source: Path, tmp_path: Path) -> None:
    command(["--mmrec", str(source), "--output", str(tmp_path / "out")])
    data = open_dataset(tmp_path / "out")
    assert (data.name, data.num_users, data.num_items) == ("baby", 3, 6)  # items 2 and 5 are in the catalogue
    assert list(data.item_ids) == [0, 1, 2, 3, 4, 5]
    found = {
        (int(user), int(item), int(weight), int(time), label)
        for label, split in enumerate(("train", "valid", "test"))
        for part in [data.interactions(split)]
        for user, item, weight, time in zip(
            part.users, part.items, part.weights, part.timestamps, strict=True
        )
    }
    assert found == set(ROWS)
    assert {m.name: (m.dim, m.missing) for m in data.modalities} == {"image": (2, 0), "text": (4, 2)}
    assert data.features("text").present.tolist() == [True] * 4 + [False] * 2


def test_a_threshold_may_apply_and_features_stay_with_their_items(source: Path, tmp_path: Path) -> None:
    command(["--mmrec", str(source), "--output", str(tmp_path / "out"), "--min-weight", "2"])
    data = open_dataset(tmp_path / "out")
    assert data.num_users == 2
    image = data.features("image").values
    expected = np.arange(12.0).reshape(6, 2)
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(image, expected, atol=1e-3)
