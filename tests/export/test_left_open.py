"""What models leave to the values at hand is said in the captured program, so that every format does the same."""

import torch
from palmtop.export import export_module


class LastToken(torch.nn.Module):
    """Sentences shifted by their own last token, as mBART does, and masked places filled with a number."""

    def forward(self, ids: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
        last = (ids.ne(0).sum(dim=1) - 1).unsqueeze(-1)
        first = ids.gather(1, last).squeeze()
        shifted = ids.new_zeros(ids.shape)
        shifted[:, 1:] = ids[:, :-1].clone()
        shifted[:, 0] = first
        states = states.clone()
        states[ids == 7] = 5.0
        return states + shifted.unsqueeze(-1)


def test_a_batch_of_one_is_squeezed_like_others_and_masks_are_filled(tmp_path):
    ids = torch.tensor([[3, 7, 5, 2, 0], [4, 6, 9, 2, 2], [8, 2, 0, 0, 0]])
    states = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0))
    batch = {0: "batch"}

    result = export_module(
        LastToken(),
        {"ids": ids, "states": states},
        tmp_path / "last.bundle",
        dynamic_axes={"ids": batch, "states": batch},
        verify_inputs=[{"ids": ids[:1], "states": states[:1]}, {"ids": ids[1:], "states": states[1:]}],
    )

    assert [entry.status for entry in result.report.artifacts] == ["passed"] * 3
