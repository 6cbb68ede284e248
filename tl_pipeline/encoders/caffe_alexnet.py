"""AlexNet as Caffe trained it: grouped convolutions, normalised responses, BGR."""

import torch
from torch import nn


class CaffeAlexNet(nn.Module):
    """The network of Krizhevsky et al. 2012 with the layers of Caffe's bvlc_alexnet.

    Source: Krizhevsky, Sutskever and Hinton, "ImageNet Classification with Deep
    Convolutional Neural Networks", NIPS 2012, section 3. Unlike torchvision's, it has
    two groups in ``conv2``, ``conv4`` and ``conv5``, and local response normalisation
    before the first two poolings. Feature maps of one image::

        input (3, 227, 227)  conv1 (96, 55, 55)   pool1 (96, 27, 27)
        conv2 (256, 27, 27)  pool2 (256, 13, 13)  conv3, conv4 (384, 13, 13)
        conv5 (256, 13, 13)  pool5 (256, 6, 6)    fc6, fc7 (4096,)  fc8 (n_classes,)

    ``images`` are RGB in [0, 255] minus ImageNet's mean; the network turns them to BGR.
    ``fc6`` reads ``pool5`` row by row with the channels last, as TensorFlow does, in
    whose order the arrays of Caffe's weights are passed on.
    """

    def __init__(self, n_classes: int = 1000) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 96, 11, stride=4)
        self.relu1 = nn.ReLU()
        self.norm1 = nn.LocalResponseNorm(5, alpha=1e-4, beta=0.75)
        self.pool1 = nn.MaxPool2d(3, 2)
        self.conv2 = nn.Conv2d(96, 256, 5, padding=2, groups=2)
        self.relu2 = nn.ReLU()
        self.norm2 = nn.LocalResponseNorm(5, alpha=1e-4, beta=0.75)
        self.pool2 = nn.MaxPool2d(3, 2)
        self.conv3 = nn.Conv2d(256, 384, 3, padding=1)
        self.relu3 = nn.ReLU()
        self.conv4 = nn.Conv2d(384, 384, 3, padding=1, groups=2)
        self.relu4 = nn.ReLU()
        self.conv5 = nn.Conv2d(384, 256, 3, padding=1, groups=2)
        self.relu5 = nn.ReLU()
        self.pool5 = nn.MaxPool2d(3, 2)
        self.fc6 = nn.Linear(9216, 4096)
        self.relu6 = nn.ReLU()
        self.fc7 = nn.Linear(4096, 4096)
        self.relu7 = nn.ReLU()
        self.fc8 = nn.Linear(4096, n_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Compute logits (n, n_classes) for ``images`` (n, 3, 227, 227)."""
        maps = self.relu1(self.conv1(images.flip(1)))
        maps = self.relu2(self.conv2(self.pool1(self.norm1(maps))))
        maps = self.relu3(self.conv3(self.pool2(self.norm2(maps))))
        maps = self.pool5(self.relu5(self.conv5(self.relu4(self.conv4(maps)))))
        values = maps.permute(0, 2, 3, 1).flatten(1)
        return self.fc8(self.relu7(self.fc7(self.relu6(self.fc6(values)))))
