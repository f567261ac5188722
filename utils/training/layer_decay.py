"""The groups of layers of a ResNet that layer-wise learning rates know (SparK's; Tian et al., arXiv 2301.03580).

The rule is that of keyu-tian/SparK (downstream_imagenet/models/__init__.py, resnets_get_layer_id_and_scale_exp). From
the bottom up: the stem, stage 1, stage 2 in parts, stage 3 in parts, stage 4, the head. With n groups, number i from 0
on has layer_decay^(n − 1 − i) of the learning rate. A ResNet-50 has 8 groups, as in SparK. For a ResNet-18 SparK has no
rule; here its stages 2 and 3 are a part each.
"""

import re

from torch import nn

BLOCK = re.compile(r"layer([1-4])\.(\d+)\.")  # begins a parameter's name: stage, number of the block in it
HEAD = "fc."


def blocks_in_a_part(stage: int, blocks: int) -> int:
    """How many blocks of a stage with so many blocks share a learning rate."""
    if stage == 2:
        return 2 if blocks <= 4 else 4  # of a ResNet-50 or 101; of a ResNet-152
    if stage == 3:
        return 3 if blocks <= 23 else 4
    return blocks


def layers_of(model: nn.Module) -> list[list[nn.Parameter]]:
    """The parameters of torchvision's ResNet by groups of layers, the stem first and the head last."""
    blocks_of_stage = {1: 0, 2: 0, 3: 0, 4: 0}
    for name, _ in model.named_parameters():
        if block := BLOCK.match(name):
            stage, number = int(block[1]), int(block[2])
            blocks_of_stage[stage] = max(blocks_of_stage[stage], number + 1)
    layers: dict[tuple[int, int], list[nn.Parameter]] = {}  # (stage, part): the stem is stage 0, the head stage 5
    for name, parameter in model.named_parameters():
        place = (0, 0)
        if block := BLOCK.match(name):
            stage, number = int(block[1]), int(block[2])
            place = (stage, number // blocks_in_a_part(stage, blocks_of_stage[stage]))
        elif name.startswith(HEAD):
            place = (5, 0)
        layers.setdefault(place, []).append(parameter)
    return [layers[place] for place in sorted(layers)]
