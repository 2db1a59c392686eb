from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from gnnmr_dist.data.dataset import open_dataset
from gnnmr_dist.prepare import command

INTER = "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"
ITEM = """\
item_id:token\ttitle:token_seq\tclass:token\tv:float_seq
1\tThe "Big One\tx\t1 0
2\tbig Two\ty\t0 2
3\t\t\t1 1
"""


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "toy"
    folder.mkdir()
    rows = [f"u{user}\t{item}\t{item}.0\t{100 * item + user}.0" for user in range(4) for item in (3, 1, 2)]
    (folder / "toy.inter").write_text(INTER + "\n".join(rows) + "\n")
    (folder / "toy.item").write_text(ITEM)
    (folder / "toy.user").write_text("user_id:token\tage:float\nu3\t20\nu2\t30\nu1\t40\nu0\t50\nu9\t60\n")
    return folder


def test_atomic_files_become_a_data_set(source: Path, tmp_path: Path) -> None:
    np.save(source / "clip.npy", np.ones((3, 5)))
    output = tmp_path / "out"
    options = ["--features", "clip=clip.npy", "--split", "user-time", "--leave", "1"]
    command(["--recbole", str(source), "--output", str(output), *options])
    data = open_dataset(output)
    assert (data.name, data.num_users, data.num_items) == ("toy", 4, 3)
    assert list(data.user_ids) == ["u3", "u2", "u1", "u0"]  # in the order of toy.user, u9 has no interactions
    assert list(data.item_ids) == [1, 2, 3]
    kinds = {modality.name: (modality.kind, modality.dim) for modality in data.modalities}
    assert kinds == {"title": ("bag", 5), "class": ("category", 2), "v": ("dense", 2), "clip": ("dense", 5)}
    for split, item in (("train", 0), ("valid", 1), ("test", 2)):
        part = data.interactions(split)
        assert part.items.tolist() == [item] * 4  # item 1 is first in time
        assert part.timestamps is not None
        assert sorted(part.timestamps) == [100 * (item + 1) + user for user in range(4)]
        assert part.weights is not None
        assert part.weights.tolist() == [item + 1.0] * 4


def test_ratings_can_be_thresholded_and_cored(source: Path, tmp_path: Path) -> None:
    options = [
        "--min-weight",
        "2",
        "--k-core",
        "2",
        "--split",
        "global-time",
        "--ratios",
        "0.5",
        "0.25",
        "0.25",
    ]
    command(["--recbole", str(source), "--output", str(tmp_path / "out"), *options])
    data = open_dataset(tmp_path / "out")
    assert sum(data.interactions(split).users.size for split in ("train", "valid", "test")) == 8
    assert data.interactions("train").items.tolist() == [1] * 4


def test_random_splits_follow_the_seed(source: Path, tmp_path: Path) -> None:
    digests = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        output = tmp_path / name
        command(["--recbole", str(source), "--output", str(output), "--seed", str(seed)])
        digests.append(open_dataset(output).digest)
    assert digests[0] == digests[1] != digests[2]
