"""The slice of a data set that a suite asks for: limit, subsets, classes, label maps; checks on what is read."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from harness.datasets import DatasetSlice, Ints, SliceSpec
from harness.errors import HarnessError
from harness.label_map import OTHERS
from harness.readout import Readout


class Fake:
    """Image i is filled with i / N."""

    shape = (1, 2, 2)
    levels = 256

    def __init__(self, labels: list[int], class_names: tuple[str, ...] = ("cat", "dog", "fox")) -> None:
        self.class_names = class_names
        self._labels = np.array(labels, dtype=np.int64)

    def labels(self) -> Ints:
        return self._labels

    def images(self, index: Ints) -> Tensor:
        values = torch.from_numpy(index / self._labels.size).to(torch.float32)
        return values[:, None, None, None].expand(-1, 1, 2, 2).contiguous()

    def digest(self) -> str:
        return "fake"


LABELS = [0, 1, 2, 0, 1, 2, 0, 1, 2, 0]


def cut(spec: SliceSpec | None = None, labels: list[int] = LABELS, **fields: object) -> DatasetSlice:
    return DatasetSlice("fake", Fake(labels), dataclasses.replace(spec or SliceSpec(), **fields))


def test_whole() -> None:
    data = cut()
    assert data.ids.tolist() == list(range(10))
    assert data.labels().tolist() == LABELS
    assert len(data) == 10
    assert (data.facts.num_classes, data.facts.shape, data.facts.levels) == (3, (1, 2, 2), 256)


def test_load_reads_the_samples_asked_for() -> None:
    x, y = cut().load(np.array([7, 2]))
    assert x[:, 0, 0, 0].tolist() == pytest.approx([0.7, 0.2])
    assert y.tolist() == [1, 2]
    assert y.dtype == torch.int64


def test_limit_keeps_the_first() -> None:
    assert cut(limit=4).ids.tolist() == [0, 1, 2, 3]
    assert cut(limit=99).ids.tolist() == list(range(10))


def test_classes_by_name_and_index_keep_ids_and_labels() -> None:
    data = cut(classes=("fox", 1))
    assert data.ids.tolist() == [1, 2, 4, 5, 7, 8]
    assert data.labels().tolist() == [1, 2, 1, 2, 1, 2]
    assert data.facts.class_names == ("cat", "dog", "fox")


def test_limit_counts_the_samples_of_the_kept_classes() -> None:
    assert cut(classes=("dog",), limit=2).ids.tolist() == [1, 4]


@pytest.mark.parametrize("wrong", ["wolf", 3, -1])
def test_unknown_class(wrong: str | int) -> None:
    with pytest.raises(HarnessError, match=f"{wrong!r} is not a class; it has 3"):
        cut(classes=(wrong,))


def test_label_map_of_names_renames_in_place_and_merges() -> None:
    renamed = cut(label_map={"dog": "puppy"})
    assert renamed.facts.class_names == ("cat", "puppy", "fox")
    assert renamed.labels().tolist() == LABELS
    merged = cut(label_map={"dog": "pet", "cat": "pet"})
    assert merged.facts.class_names == ("pet", "fox")
    assert merged.labels()[:3].tolist() == [0, 0, 1]


def test_label_map_of_indices_numbers_as_the_model_does() -> None:
    data = cut(label_map={"cat": 5, "dog": 2, "fox": 2})
    assert data.labels()[:3].tolist() == [5, 2, 2]
    assert data.facts.num_classes == 6
    assert data.facts.class_names[5] == "cat"
    assert data.load(np.array([0]))[1].tolist() == [5]


def test_label_map_of_a_shifted_set_with_fewer_classes() -> None:
    data = cut(classes=("dog", "fox"), label_map={"dog": 207, "fox": 277})
    assert set(data.labels().tolist()) == {207, 277}
    assert data.facts.num_classes == 278


@pytest.mark.parametrize(
    ("label_map", "text"),
    [
        ({"dgo": 1}, "label_map: 'dgo' is not a class of it; did you mean 'dog'"),
        ({"cat": 1}, r"label_map gives no index for class 'dog' \(2 missing\)"),
        ({"cat": 1, "dog": "pet"}, "names for all classes or indices for all"),
        ({"cat": 1, "dog": -2, "fox": 0}, "class indices start at 0"),
        ({"cat": (1, 2), "dog": (2, 3), "fox": 0}, "class 2 is in the sets of 'cat' and 'dog'"),
    ],
)
def test_wrong_label_maps(label_map: dict[str, str | int], text: str) -> None:
    with pytest.raises(HarnessError, match=text) as caught:
        cut(label_map=label_map)
    assert "\n" not in str(caught.value)
    assert "dataset 'fake'" in str(caught.value)


def test_a_restricted_set_numbers_its_own_classes_in_the_model_s_order() -> None:
    data = cut(label_map={"cat": 207, "dog": 6, "fox": 99}, restrict=True)
    assert data.facts.class_names == ("dog", "fox", "cat")
    assert data.facts.readout == Readout(((6,), (99,), (207,)), restricted=True)
    assert data.labels()[:3].tolist() == [2, 0, 1]


def test_restricted_to_some_classes_without_a_label_map() -> None:
    data = cut(classes=("fox", "cat"), restrict=True)
    assert data.ids.tolist() == [0, 2, 3, 5, 6, 8, 9]
    assert data.labels()[:2].tolist() == [0, 1]
    assert (data.facts.class_names, data.facts.readout) == (("cat", "fox"), Readout(((0,), (2,)), restricted=True))


def test_a_class_of_several_of_the_model_s_and_one_of_none() -> None:
    data = cut(label_map={"cat": (4, 2), "dog": 7, "fox": ()})
    assert data.facts.class_names == ("cat", "dog", OTHERS)
    assert data.facts.readout == Readout(((2, 4), (7,)), restricted=False)
    assert data.ids.tolist() == [0, 1, 3, 4, 6, 7, 9]
    assert data.labels()[:2].tolist() == [0, 1]
    single = cut(label_map={"cat": (4,), "dog": 7, "fox": ()})  # one index each: the model's own numbers
    assert (single.facts.readout, single.labels()[:2].tolist()) == (None, [4, 7])
    alike = cut(label_map={"cat": (4, 2), "dog": (2, 4), "fox": 1})
    assert alike.facts.class_names == ("fox", "cat", OTHERS)
    assert alike.labels()[:3].tolist() == [1, 1, 0]


@pytest.mark.parametrize("wrong", [-1, 3])
def test_labels_out_of_range(wrong: int) -> None:
    with pytest.raises(HarnessError, match=f"sample 2 has label {wrong}, but the classes are 0 to 2"):
        cut(labels=[0, 1, wrong, wrong])


@settings(max_examples=60, deadline=None)
@given(
    labels=st.lists(st.integers(0, 2), min_size=1, max_size=60),
    limit=st.integers(1, 60),
    seed=st.integers(0, 5),
)
def test_stratified_subsets_are_nested_sorted_and_repeatable(labels: list[int], limit: int, seed: int) -> None:
    data = cut(labels=labels, limit=limit, subset="stratified", subset_seed=seed)
    again = cut(labels=labels, limit=limit, subset="stratified", subset_seed=seed)
    more = cut(labels=labels, limit=limit + 1, subset="stratified", subset_seed=seed)
    assert len(data) == min(limit, len(labels))
    assert data.ids.tolist() == sorted(set(data.ids.tolist())) == again.ids.tolist()
    assert set(data.ids.tolist()) <= set(more.ids.tolist())


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.tuples(*[st.integers(1, 200)] * 3),
    share=st.floats(0.05, 1),
    seed=st.integers(0, 5),
)
def test_stratified_subsets_keep_the_shares(sizes: tuple[int, int, int], share: float, seed: int) -> None:
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(3), sizes)).tolist()
    limit = max(1, round(share * len(labels)))
    data = cut(labels=labels, limit=limit, subset="stratified", subset_seed=seed)
    counts = np.bincount(data.labels(), minlength=3)
    expected = limit * np.array(sizes) / len(labels)
    assert np.abs(counts - expected).max() <= 1.5  # 3 classes, each rounded by at most half at a common quantile


def test_stratified_differs_by_seed() -> None:
    one, two = (cut(labels=[0, 1] * 50, limit=20, subset="stratified", subset_seed=s) for s in (0, 1))
    assert one.ids.tolist() != two.ids.tolist()
    assert one.digest() != two.digest()


def test_stratified_choice_is_pinned() -> None:
    """Another choice from the same seed would make a new run incomparable with its baseline."""
    data = cut(labels=[0, 1] * 15, limit=6, subset="stratified", subset_seed=3)
    assert data.ids.tolist() == [0, 1, 2, 15, 16, 21]


def test_digest_depends_on_samples_labels_and_names() -> None:
    digests = {
        cut(**fields).digest()  # type: ignore[arg-type]
        for fields in (
            {},
            {"limit": 4},
            {"classes": ("dog",)},
            {"label_map": {"cat": "lion"}},
            {"label_map": {"cat": 1, "dog": 0, "fox": 2}},
            {"restrict": True},
            {"restrict": True, "label_map": {"cat": 5, "dog": 6, "fox": 7}},
        )
    }
    assert len(digests) == 7
    assert cut().digest() == cut(limit=99).digest()


@pytest.mark.parametrize(
    ("images", "text"),
    [
        (torch.zeros(2, 1, 3, 2), r"returned torch.float32 \(2, 1, 3, 2\), not float32 \(2, 1, 2, 2\)"),
        (torch.zeros(2, 1, 2, 2, dtype=torch.float64), "torch.float64"),
        (torch.full((2, 1, 2, 2), 255.0), r"outside \[0, 1\]"),
        (torch.full((2, 1, 2, 2), float("nan")), r"outside \[0, 1\] \(or NaN\)"),
    ],
)
def test_a_data_set_that_breaks_its_word(images: Tensor, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = cut()
    monkeypatch.setattr(data.dataset, "images", lambda index: images)
    with pytest.raises(HarnessError, match=text):
        data.load(np.array([0, 1]))
