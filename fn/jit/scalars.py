"""Compute once what is one number: TorchInductor writes the formula of a number into every loop that reads it.

In Adam, 1 - βᵗ = -expm1(t log β) is one number for all weights, and so is the rate that a schedule gives. In the loop
over the weights each is computed anew for every eight of them. A maximum is computed by itself, before the loop: that
of eight copies of a number is the number, NaN too.
"""

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

aten = torch.ops.aten
COSTLY = {aten.exp.default, aten.expm1.default, aten.log.default, aten.log1p.default, aten.sqrt.default}
COSTLY |= {aten.rsqrt.default, aten.cos.default, aten.sin.default, aten.tanh.default, aten.sigmoid.default}
COSTLY |= {aten.pow.Tensor_Tensor, aten.pow.Tensor_Scalar, aten.pow.Scalar}
COPIES = 8
"""fewer would be written out as a formula again"""


def compute_numbers_once(module: GraphModule) -> None:
    """Have each number that takes more than a few operations computed once, before the loops that read it."""
    costly: dict[Node, None] = {}  # in their order: by the names of what is added a program is found on the disk
    known: dict[tuple, Node] = {}
    for node in module.graph.nodes:
        if not _is_number(node) or not (node.target in COSTLY or costly.keys() & {*node.all_input_nodes}):
            continue
        first = known.setdefault((node.target, str(node.args), str(node.kwargs)), node)
        if first is not node:  # the rate times the decay, for the next weight
            node.replace_all_uses_with(first)
            module.graph.erase_node(node)
            continue
        costly[node] = None
    for node in costly:
        if readers := [user for user in node.users if not _is_number(user) and user.op == "call_function"]:
            with module.graph.inserting_after(node):
                copies = module.graph.call_function(aten.expand.default, (node, [COPIES]))
            with module.graph.inserting_after(copies):
                once = module.graph.call_function(aten.amax.default, (copies,))
            for reader in readers:
                reader.replace_input_with(node, once)
    module.recompile()


def _is_number(node: Node) -> bool:
    """Return whether the node is a floating-point tensor without axes."""
    found = node.meta.get("val")
    return isinstance(found, Tensor) and found.ndim == 0 and found.is_floating_point()
