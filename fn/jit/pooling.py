"""Have a ReLU work behind the max pooling that follows it: max(relu(x)) = relu(max(x)), on one value of each window.

The gradient is the same too: where the largest of a window is at most 0, no entry gets any. Ties and NaN fall as
before, because no entry that the ReLU sets to 0 exceeds one that it keeps.
"""

# pyright: reportAttributeAccessIssue=false, reportOptionalMemberAccess=false, reportArgumentType=false
# pyright: reportGeneralTypeIssues=false, reportOptionalIterable=false, reportUnhashable=false, reportOperatorIssue=false
# the arguments of a node may be anything; those of these operations are nodes

from operator import getitem
from typing import NamedTuple

import torch
from torch.fx import Graph, GraphModule, Node

aten = torch.ops.aten
CUTS = (aten.view.default, aten.slice.Tensor, aten.unbind.int, getitem)
COMPARES = (aten.gt.Tensor, aten.ne.Tensor, aten.bitwise_or.Tensor)
JOINS = (aten.view.default, aten.stack.default, aten.slice_backward.default)
"""the gradients of CUTS"""


class Pool(NamedTuple):
    """A pooling of y, and its gradient: from g, that of the output, to `closed`, where the ReLU of y masks it."""

    inside: set[Node]
    output: Node
    g: Node | None
    masked: Node | None


def move_relus_behind_pools(module: GraphModule) -> None:
    """Apply each ReLU in front of a max pooling behind it: the same values and gradient, from fewer numbers."""
    for y in module.graph.find_nodes(op="call_function", target=aten.where.self):
        if is_relu(y) and (pool := _find_pool(y)):
            _move(module.graph, y, pool)
    module.recompile()


def is_relu(y: Node) -> bool:
    """Return whether the node is y = where(x <= 0, 0, x)."""
    closed, zero, x = y.args
    return _is(closed, aten.le.Scalar) and closed.args == (x, 0) and _is_zero(zero)


def _is(node: object, target: object) -> bool:
    return isinstance(node, Node) and node.target is target


def _is_zero(node: object) -> bool:
    constants = (aten.scalar_tensor.default, aten.full.default)
    return isinstance(node, Node) and node.target in constants and bool(node.args[-1] == 0)


def _find_pool(y: Node) -> Pool | None:
    """Return the pooling that all of y goes into; None if there is none, or if anything else reads what is between."""
    inside, node = {y}, y.next
    while node.op != "output":
        if node.all_input_nodes and inside.issuperset(node.all_input_nodes) and _is_of_a_pool(node):
            inside.add(node)
        node = node.next
    readers = {n: [user for user in n.users if user not in inside] for n in inside}
    outputs = [n for n in inside - {y} if n.target is aten.where.self and readers[n]]
    masks = [n for n in inside if n.target is aten.bitwise_or.Tensor]
    if len(outputs) != 1 or any(readers[n] for n in inside - {y, *outputs, *masks}):
        return None
    [output] = outputs
    gradients = {user for mask in masks for user in readers[mask]}
    if not readers[y] and not gradients:
        return Pool(inside, output, None, None)
    last = readers[output.args[0]]
    of_output = {arg for user in last for arg in user.args[1:] if not _is_zero(arg)}
    if [n.target for n in readers[y]] != [aten.le.Scalar] or len(readers[y][0].users) != 1 or len(of_output) != 1:
        return None
    [masked], [g] = readers[y][0].users, of_output
    if masked.target is not aten.where.self or not _is_zero(masked.args[1]) or masked.args[0] is not readers[y][0]:
        return None
    return Pool(inside, output, g, masked) if _made_of(masked.args[2], g, inside) == gradients else None


def _is_of_a_pool(node: Node) -> bool:
    """Return whether a node cuts, compares, or takes `later` where later > x or later is NaN, and else x."""
    if node.target is not aten.where.self:
        return node.target in CUTS or node.target in COMPARES
    mask, later, x = node.args
    if not _is(mask, aten.bitwise_or.Tensor):
        return False
    larger, odd = mask.args
    larger_is_later = _is(larger, aten.gt.Tensor) and larger.args == (later, x)
    return larger_is_later and _is(odd, aten.ne.Tensor) and odd.args == (later, later)


def _made_of(node: Node, g: Node, inside: set[Node]) -> set[Node] | None:
    """Return the `where`s through which a gradient comes from g by the masks of a pooling; None if by others too."""
    wheres, waiting = set(), [node]
    while waiting:
        node = waiting.pop()
        if node is g or _is_zero(node):
            continue
        if node.target is aten.where.self and node.args[0] in inside:
            wheres.add(node)
            waiting += node.args[1:]
        elif node.target in JOINS:
            waiting += node.all_input_nodes
        else:
            return None
    return wheres


def _move(graph: Graph, y: Node, pool: Pool) -> None:
    _, zero, x = y.args
    inside, output, g, masked = pool
    with graph.inserting_after(output):
        closed = graph.call_function(aten.le.Scalar, (output, 0))
    with graph.inserting_after(closed):
        result = graph.call_function(aten.where.self, (closed, zero, output))
    output.replace_all_uses_with(result, delete_user_cb=lambda user: user not in (closed, result))
    if g and masked:
        first = next(user for user in output.args[0].users if user not in inside)
        with graph.inserting_before(first):
            also_closed = graph.call_function(aten.le.Scalar, (result, 0))
            masked_g = graph.call_function(aten.where.self, (also_closed, zero, g))
        for user in [user for user in output.args[0].users if user not in inside]:
            user.replace_input_with(g, masked_g)
        masked.replace_all_uses_with(masked.args[2])
    for user in [user for user in y.users if user in inside]:
        user.replace_input_with(y, x)
