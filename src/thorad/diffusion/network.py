"""The denoiser: MONAI's diffusion U-Net, told the timestep and, where it knows several, the kind of noise."""

from __future__ import annotations

from collections.abc import Sequence

from monai.networks.nets import DiffusionModelUNet
from torch import Tensor, nn
from torch.nn import functional


class Denoiser(nn.Module):
    """Predicts the noise in a noised image.

    With ``patch`` > 1 the image is folded (space to depth): the U-Net works on a grid smaller by that factor, with
    patch² channels, at about patch² less cost.

    Args:
        channels: width of each level of the U-Net.
        attention: whether each level has self-attention.
        residual_blocks: residual blocks a level.
        head_channels: channels of an attention head.
        patch: side of the folded blocks in px; 1 does not fold.
        noise_kinds: how many kinds of noise the network is told apart; 1 tells it nothing.
    """

    def __init__(
        self,
        channels: Sequence[int],
        attention: Sequence[bool],
        residual_blocks: int,
        head_channels: int,
        patch: int = 1,
        noise_kinds: int = 1,
    ) -> None:
        super().__init__()
        self.patch = patch
        self.noise_kinds = noise_kinds
        self.unet = DiffusionModelUNet(
            spatial_dims=2,
            in_channels=patch**2,
            out_channels=patch**2,
            channels=tuple(channels),
            attention_levels=tuple(attention),
            num_res_blocks=residual_blocks,
            num_head_channels=head_channels,
            num_class_embeds=noise_kinds if noise_kinds > 1 else None,
            use_flash_attention=True,
        )

    def forward(self, x_t: Tensor, t: Tensor, kind: Tensor) -> Tensor:
        """The noise in x_t.

        Args:
            x_t: (B, 1, H, W), H and W multiples of patch * 2^(levels - 1).
            t: timesteps (B,), integer.
            kind: index of the noise's kind (B,), integer.

        Returns:
            (B, 1, H, W) float32.
        """
        folded = functional.pixel_unshuffle(x_t, self.patch)  # (B, patch², H / patch, W / patch)
        eps = self.unet(folded, t, class_labels=kind if self.noise_kinds > 1 else None)
        return functional.pixel_shuffle(eps, self.patch).float()
