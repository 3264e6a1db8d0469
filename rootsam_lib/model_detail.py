"""The detail path: what lets the decoder see thin roots at the finest strides of the frozen trunk."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class DetailPath(nn.Module):
    """A small convolutional side path for thin structures: from the trunk's strides 4 and 8 straight to the decoder.

    SAM2.1's own path there, the neck with conv_s0 / conv_s1, is linear and treats each place alone. This one looks at a
    place's neighbours, and its output is added to that of conv_s0 / conv_s1. Its last layers start at nought, so that
    training starts from the model as it was. HQ-SAM (Ke et al. 2023, section 3.2) fuses early features for thin
    structures in the same spirit.

    channels: of the trunk's maps at strides 4 and 8. out: of conv_s0's and conv_s1's outputs.
    """

    def __init__(self, channels: tuple[int, int], out: tuple[int, int], width: int = 32):
        super().__init__()
        self.conv8 = nn.Conv2d(channels[1], 2 * width, 3, padding=1)
        self.lift = nn.Conv2d(2 * width, width, 1)
        self.conv4 = nn.Conv2d(channels[0], width, 3, padding=1)
        self.mix4 = nn.Conv2d(width, width, 3, padding=1)
        self.out8 = nn.Conv2d(2 * width, out[1], 3, padding=1)
        self.out4 = nn.Conv2d(width, out[0], 3, padding=1)
        for last in (self.out4, self.out8):
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)
        self.to(memory_format=torch.channels_last)

    def forward(self, four: Tensor, eight: Tensor) -> tuple[Tensor, Tensor]:
        """From maps (B, C, h / 4, w / 4) and (B, C, h / 8, w / 8) to what is added at the same strides."""
        eight = F.relu(self.conv8(eight))
        lifted = F.interpolate(self.lift(eight), four.shape[-2:], mode="bilinear", align_corners=False)
        four = F.relu(self.mix4(F.relu(self.conv4(four) + lifted)))
        return self.out4(four), self.out8(eight)
