"""LeNet-5 in its modern form: ReLU and max pooling in place of tanh and averages."""

import torch
from torch import nn


class LeNet5(nn.Module):
    """The convolutional network of LeCun et al. 1998, with a linear output layer.

    Source: LeCun, Bottou, Bengio and Haffner, "Gradient-based learning applied to
    document recognition", Proceedings of the IEEE 86(11), 1998, section II.B, whose
    names the submodules keep. Feature maps of one image, as (channels, height, width)::

        input (1, 32, 32)   c1 (6, 28, 28)    s2 (6, 14, 14)
        c3 (16, 10, 10)     s4 (16, 5, 5)     c5 (120, 1, 1)
        flatten (120,)      f6 (84,)          output (n_classes,)

    As is now usual, every map of C3 sees all maps of S2, and plain logits replace the
    radial basis functions of the output. Each ReLU is a module of its own
    (``c1_relu``, ``c3_relu``, ``c5_relu``, ``f6_relu``), so that feature extractors
    can name it.

    Args:
        n_classes: number of logits; 26, the letters, fits the bundled weights.
    """

    def __init__(self, n_classes: int = 26) -> None:
        super().__init__()
        self.c1 = nn.Conv2d(1, 6, kernel_size=5)
        self.c1_relu = nn.ReLU()
        self.s2 = nn.MaxPool2d(2)
        self.c3 = nn.Conv2d(6, 16, kernel_size=5)
        self.c3_relu = nn.ReLU()
        self.s4 = nn.MaxPool2d(2)
        self.c5 = nn.Conv2d(16, 120, kernel_size=5)
        self.c5_relu = nn.ReLU()
        self.flatten = nn.Flatten()
        self.f6 = nn.Linear(120, 84)
        self.f6_relu = nn.ReLU()
        self.output = nn.Linear(84, n_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Compute logits (n, n_classes) for float32 ``images`` (n, 1, 32, 32)."""
        maps = self.s2(self.c1_relu(self.c1(images)))
        maps = self.s4(self.c3_relu(self.c3(maps)))
        maps = self.c5_relu(self.c5(maps))
        return self.output(self.f6_relu(self.f6(self.flatten(maps))))
