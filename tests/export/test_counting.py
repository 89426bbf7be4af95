"""Positions that begin at a number which is an input."""

import pytest
import torch
from palmtop.export.generation.counting import CountedFrom
from palmtop.export.generation.decoder import Unread


class Positions(torch.nn.Module):
    """The positions of new tokens as models make them: a range, and a slice of a table."""

    def forward(self, ids: torch.Tensor, start: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        table = torch.arange(40).mul(3)[None]
        with CountedFrom(start, 16):
            return torch.arange(start, start + ids.shape[1]), table[:, start : ids.shape[1] + start]


def test_a_captured_range_and_slice_begin_where_the_input_says():
    ids, start = torch.zeros(1, 5, dtype=torch.int64), torch.tensor([3])
    shapes = {"ids": {1: torch.export.Dim("sequence", min=1, max=16)}, "start": {}}
    program = torch.export.export(Positions(), (ids, start), dynamic_shapes=shapes)

    positions, slices = program.module()(ids[:, :4], torch.tensor([7]))

    assert positions.tolist() == [7, 8, 9, 10]
    assert slices.tolist() == [[21, 24, 27, 30]]


def test_whether_a_table_is_long_enough_is_answered_for_every_start():
    start = torch.tensor([3]).as_subclass(Unread)
    with CountedFrom(start, 16):
        assert not 2 + start + 5 > 23  # the last of 16 + 7 positions
        with pytest.raises(TypeError, match="depends on an input"):
            bool(2 + start + 5 > 22)


def test_other_ranges_and_slices_are_as_ever():
    arange = torch.arange
    with CountedFrom(torch.tensor([3]), 16):
        assert torch.arange(2, 5).tolist() == [2, 3, 4]
        assert torch.arange(6)[1:3].tolist() == [1, 2]
    assert torch.arange is arange
