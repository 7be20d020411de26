"""Text as data: its characters, its split, its windows, and the texts that are refused."""

import gzip
from pathlib import Path
from typing import Any

import pytest
import torch

from laptime.data.order import EpochOrder, LapOrder
from laptime.data.text import KJV, Text
from laptime.data.text_batches import TextPipeline, windows_of
from laptime.data.text_datamodule import VOCABULARY, TextDataModule
from laptime.errors import UserError
from laptime.machine.device import Device
from laptime.ranks.rank import Rank

pytestmark = pytest.mark.unit

LETTERS = "abcdefghijklmnopqrstuvwxyz"


def text(**changes: Any) -> Text:
    return Text(
        **{"path": None, "context_length": 3, "val_fraction": 0.1, "limit": None, "pipeline": "memory", **changes}
    )


@pytest.fixture
def module(tmp_path: Path, cpu: Device):
    """module(content, **changes): the data module of a text; changes to the data or to the rank."""

    def make_one(content: str, rank: Rank = Rank(), batch_size: int = 2, **changes: Any) -> TextDataModule:  # noqa: B008
        path = tmp_path / "some.txt"
        path.write_text(content, encoding="utf-8")
        return TextDataModule(text(path=str(path), **changes), cpu, batch_size, 4, 2, seed=1, rank=rank)

    return make_one


def decoded(data: Text, batches: Any) -> list[str]:
    """The windows of some batches as text: the inputs, and the last target."""
    return [
        data.decode([*x.tolist(), int(y[-1])])
        for inputs, targets in batches
        for x, y in zip(inputs, targets, strict=True)
    ]


def test_the_text_that_comes_with_laptime_is_the_one_in_the_file():
    source = text()
    tokens, checksum = source.load()
    content = gzip.decompress(KJV.read_bytes()).decode()
    assert source.decode(tokens.tolist()) == content
    assert (len(tokens), len(source.vocabulary), tokens.dtype) == (1_027_427, 63, torch.uint8)
    assert content.startswith("In the beginning God created the heaven and the earth.")
    assert len(checksum) == 16


def test_characters_beyond_256_become_wider_tokens(tmp_path):
    content = "".join(map(chr, range(0x4E00, 0x4E00 + 300))) + "é🙂"
    (tmp_path / "many.txt").write_text(content, encoding="utf-8")
    source = text(path=str(tmp_path / "many.txt"))
    tokens, _ = source.load()
    assert tokens.dtype == torch.int32
    assert source.vocabulary == "".join(sorted(content))
    assert source.decode(tokens.tolist()) == content


def test_a_byte_order_mark_is_no_character(tmp_path):
    (tmp_path / "bom.txt").write_bytes("\ufeffaé".encode())
    source = text(path=str(tmp_path / "bom.txt"))
    source.load()
    assert source.vocabulary == "aé"


def test_the_split_is_contiguous(module):
    data = module(LETTERS * 10, val_fraction=0.5)
    # 260 characters: 117 for training, 117 for validation, 26 for test; windows of 4, which move in training.
    assert (data.num_train, data.num_val, data.num_test) == ((117 - 3) // 4, 117 // 4, 26 // 4)
    after_training = (LETTERS * 10)[117:]
    assert decoded(data.data, data.val_dataloader()) == [after_training[4 * k : 4 * k + 4] for k in range(29)]
    assert decoded(data.data, data.test_dataloader())[0] == "abcd"


def test_an_epoch_has_all_disjoint_windows_at_one_offset(module):
    data, text_of_training, offsets = module(LETTERS * 20), (LETTERS * 20)[:421], set()
    loader = data.train_dataloader()
    for epoch in range(12):
        loader.sampler.set_epoch(epoch)
        windows = decoded(data.data, (batch for group in loader.pipeline.step_groups() for batch in group))
        assert sorted(windows) != windows
        matching = [
            offset
            for offset in range(4)
            if sorted(windows)
            == sorted(text_of_training[4 * k + offset : 4 * k + offset + 4] for k in range(data.num_train))
        ]
        assert matching, epoch
        offsets |= set(matching)
    assert len(offsets) > 1


def test_batches_depend_on_seed_and_epoch_alone():
    windows = windows_of(torch.arange(100, dtype=torch.uint8), 3, moves=True)

    def batches(seed: int, epoch: int, steps_per_execution: int) -> list[torch.Tensor]:
        order = EpochOrder(len(windows), seed)
        order.set_epoch(epoch)
        return [x for group in TextPipeline(windows, order, 5, steps_per_execution).step_groups() for x, _ in group]

    again = zip(batches(1, 2, 1), batches(1, 2, 4), strict=True)
    assert all(torch.equal(one, other) and one.is_contiguous() for one, other in again)
    assert not all(map(torch.equal, batches(1, 2, 1), batches(1, 3, 1)))


def test_a_pass_that_spans_laps_has_one_offset():
    """19 windows in batches of 3 make passes of 6 steps, and laps have 4 steps."""
    windows = windows_of(torch.arange(80, dtype=torch.uint8), 3, moves=True)
    order = LapOrder(4, 3, len(windows), seed=1)
    inputs = []
    for lap in range(3):
        order.set_epoch(lap)
        inputs += [x for x, _ in TextPipeline(windows, order, 3, 2).batches()]
    offsets = [{int(start) % 4 for start in torch.cat(inputs[6 * number : 6 * number + 6])[:, 0]} for number in (0, 1)]
    assert [len(of_pass) for of_pass in offsets] == [1, 1]
    assert all(len(set(torch.cat(inputs[k : k + 6])[:, 0].tolist())) == 18 for k in (0, 6))


def test_targets_are_the_next_tokens():
    windows = windows_of(torch.arange(50, dtype=torch.uint8), 4, moves=False)
    inputs, targets = windows.at(slice(None))
    assert inputs.shape == targets.shape == (10, 4) and inputs.dtype == targets.dtype == torch.int64
    assert torch.equal(targets, inputs + 1)


def test_two_ranks_see_the_windows_of_one(module):
    content = LETTERS * 20

    def epoch(data: TextDataModule) -> list[str]:
        return decoded(data.data, data.train_dataloader().pipeline.batches())

    alone = epoch(module(content, batch_size=4))
    ranks = [epoch(module(content, rank=Rank(rank=rank, world_size=2, local_rank=rank))) for rank in range(2)]
    interleaved = [window for pair in zip(*ranks, strict=True) for window in pair]
    assert interleaved == alone[: len(interleaved)]
    assert len(alone) - len(interleaved) < 2


def test_a_checkpoint_has_the_vocabulary(module):
    assert module("hello world " * 30).state_dict() == {VOCABULARY: " dehlorw"}


def test_a_character_that_the_network_does_not_know_is_named(tmp_path):
    (tmp_path / "other.txt").write_text("abc\u20acdef", encoding="utf-8")
    source = text(path=str(tmp_path / "other.txt"))
    source.vocabulary = "abcdef"
    with pytest.raises(UserError, match=r"^dataset\.path=.*other\.txt: contains '€' \(U\+20AC\), which the text of"):
        source.load()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "there is no such file"),
        (b"na\xefve", "is not UTF-8 text (byte 3: "),
        (b"", "0 characters leave fewer than dataset.context_length=3 + 1 for the training set"),
        (b"short text", "10 characters leave fewer than dataset.context_length=3 + 1 for the"),
    ],
)
def test_texts_that_cant_be_used_are_refused(content, message, tmp_path, cpu):
    path = tmp_path / "a.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError) as refusal:
        TextDataModule(text(path=str(path)), cpu, 1, 1, 1, seed=1)
    assert str(refusal.value).startswith(f"dataset.path={path}: {message}")


def test_a_folder_is_refused(tmp_path):
    with pytest.raises(UserError, match="is a folder"):
        text(path=str(tmp_path)).load()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"context_length": 0}, "context_length=0: "),
        ({"val_fraction": 1.0}, r"val_fraction=1\.0: "),
        ({"limit": 0}, "limit=0: "),
    ],
)
def test_keys_out_of_their_range_are_refused(changes, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        text(**changes)


def test_the_limit_counts_characters(module):
    data = module(LETTERS * 20, limit=100, val_fraction=0)
    assert data.num_val == 0
    assert data.num_train + data.num_test == (90 - 3) // 4 + 10 // 4
