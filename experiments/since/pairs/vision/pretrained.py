"""Published weights have names

Old: squeezenet1_1(pretrained=False)

New: squeezenet1_1(weights=None)

Since: torchvision 0.13

Today: warns "The parameter 'pretrained' is deprecated since 0.13"

Why: A model has several sets of weights, each with its own accuracy and
its own preparation of images: SqueezeNet1_1_Weights.DEFAULT.transforms()
gives it. pretrained=True meant the first set, for ever.

Read: torchvision.models.get_model, torchvision.models.SqueezeNet1_1_Weights

Gone: pretrained
"""

import torch
from torchvision.models import squeezenet1_1


def given(seed: int) -> tuple[int]:
    return (10 + seed % 5,)


def old(classes: int) -> torch.Size:
    with torch.device("meta"):  # shapes alone, so that it is quick
        model = squeezenet1_1(pretrained=False, num_classes=classes)
    return model.classifier[1].weight.shape


def new(classes: int) -> torch.Size:
    with torch.device("meta"):  # shapes alone, so that it is quick
        model = squeezenet1_1(weights=None, num_classes=classes)
    return model.classifier[1].weight.shape


def wanted(classes: int) -> torch.Size:
    return torch.Size([classes, 512, 1, 1])
