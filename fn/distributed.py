"""Many processes, one result: a step whose numbers do not depend on how many processes share the work.

    step = data_parallel_step(objective, optimizer, parts=8)        # in every process, started by torchrun
    for x, y in batches(split, batch_size, seed=seed, epoch=epoch):  # the same batches in every process
        ts, metrics = step(ts, x, y, key=key)                        # the same ts and metrics in every process

A batch is cut into `parts`, however many processes there are, and each process does a block of them. Sums of floating
point depend on their order, so the order is fixed: the parts are summed in pairs, f(f(a, b), f(c, d)), and a block of
2, 4, 8, … parts is a whole branch of that tree. Keys are folded in from the number of the part, never from the rank.

Where no process group is up, one process does all parts, with the same result to the bit. Five collectives of
torch.distributed are used: all_gather_into_tensor, all_to_all_single, for checkpoints gather and scatter, and
all_reduce, which sums in an order of its own and therefore only decides when to stop.
"""

from collections.abc import Callable
from functools import partial

import torch
import torch.distributed as dist
import torch.nn.functional as F
from jaxtyping import Float, Int64, Num
from torch import Tensor

from fn import tree
from fn.domains import Count, Natural
from fn.jit import jit
from fn.layers import norm_modes
from fn.metrics import count_targets
from fn.models import Model
from fn.optim import Optimizer, global_norm
from fn.precision import common_dtype
from fn.rng import fold_in
from fn.train import Metrics, TrainState
from fn.train_variants import gradient_function
from fn.tree import Params

SMALL = 2**16
"""numbers up to which every process gathers all vectors; larger ones are summed a slice per process, then gathered"""


def place() -> tuple[int, int]:
    """Return (rank, number of processes); (0, 1) where no process group is up.

    >>> place()
    (0, 1)
    """
    return (dist.get_rank(), dist.get_world_size()) if dist.is_available() and dist.is_initialized() else (0, 1)


def own_parts(parts: Count, rank: Natural, processes: Count) -> range:
    """Return the block of parts that a process does.

    ValueError unless each process gets 1, 2, 4, 8, … parts, a whole branch of the tree that `pairwise_sum` adds along.

    >>> own_parts(8, rank=1, processes=4)
    range(2, 4)
    """
    each, left = divmod(parts, processes)
    if processes > 1 and (left or each.bit_count() != 1):
        raise ValueError(
            f"{parts} parts cannot be shared by {processes} processes: each must get 1, 2, 4, 8, … of them"
        )
    return range(rank * each, (rank + 1) * each)


def part_shares(
    y: Num[Tensor, "batch ..."], parts: Count, dtype: torch.dtype = torch.float32
) -> Float[Tensor, " parts"]:
    """Return the share of the targets that count which each part of a batch has; an empty part has none.

    If no target of the batch counts, the share of its examples.

    >>> part_shares(torch.tensor([3, 1, -100, -100, 4]), parts=3)
    tensor([0.6667, 0.0000, 0.3333])
    """
    pieces = y.tensor_split(parts)
    counts = torch.stack([count_targets(piece) for piece in pieces])
    sizes = torch.tensor([len(piece) for piece in pieces], device=y.device)
    counts = torch.where(counts.any(), counts, sizes)
    return counts.to(dtype) / counts.sum().to(dtype)


def to_vector(params: Params) -> Float[Tensor, " numbers"]:
    """Return all leaves end to end, sorted by name, in their common dtype.

    >>> to_vector({"w": torch.ones(2, 2), "b": torch.zeros(2)})
    tensor([0., 0., 1., 1., 1., 1.])
    """
    flat = tree.flatten(params)
    dtype = common_dtype(flat.values())
    return torch.cat([flat[name].reshape(-1).to(dtype) for name in sorted(flat)])


def from_vector(vector: Float[Tensor, " numbers"], like: Params) -> Params:
    """Return the tree of the shapes and dtypes of `like` with the numbers of a vector: the inverse of `to_vector`.

    >>> from_vector(torch.arange(6.0), {"w": torch.ones(2, 2), "b": torch.zeros(2)})
    {'w': tensor([[2., 3.],
            [4., 5.]]), 'b': tensor([0., 1.])}
    """
    flat = tree.flatten(like)
    cut = vector[: tree.size(like)].split([flat[name].numel() for name in sorted(flat)])
    pieces = dict(zip(sorted(flat), cut, strict=True))
    in_order = iter([pieces[name] for name in flat])
    # a copy each, as sums may round otherwise where a leaf begins in the midst of another's memory
    return tree.map(lambda leaf: next(in_order).reshape(leaf.shape).to(leaf.dtype, copy=True), like)


def pairwise_sum(x: Float[Tensor, " parts *shape"]) -> Float[Tensor, " *shape"]:
    """Return the sum over the first axis, in pairs: ((x₀ + x₁) + (x₂ + x₃)) + …; an odd last one waits a round.

    The same bits as pairwise_sum of the pairwise sums of aligned blocks of 2, 4, 8, … of them.

    >>> pairwise_sum(torch.tensor([1.0, 2.0, 3.0]))
    tensor(6.)
    """
    while len(x) > 1:
        even = len(x) // 2 * 2
        x = torch.cat([x[0:even:2] + x[1:even:2], x[even:]])
    return x[0]


Branches = list[tuple[Count, Tensor]]
"""of a pairwise sum whose terms come one by one: (how many terms, their sum), fewer and fewer"""


def add_in_pairs(branches: Branches, term: Float[Tensor, " *shape"]) -> Branches:
    """Return the branches of a pairwise sum after one more term: of n terms, log₂ n sums are held.

    >>> branches = []
    >>> for term in torch.tensor([1.0, 2.0, 3.0]):
    ...     branches = add_in_pairs(branches, term)
    >>> branches
    [(2, tensor(3.)), (1, tensor(3.))]
    """
    count = 1
    while branches and branches[-1][0] == count:
        *branches, (_, before) = branches
        count, term = 2 * count, before + term
    return [*branches, (count, term)]


def sum_of_branches(branches: Branches) -> Float[Tensor, " *shape"]:
    """Return the `pairwise_sum` of all terms that `add_in_pairs` added, to the bit.

    >>> sum_of_branches([(2, torch.tensor(3.0)), (1, torch.tensor(3.0))])
    tensor(6.)
    """
    *others, (_, total) = branches
    for _, branch in reversed(others):
        total = branch + total
    return total


def gather(x: Float[Tensor, " *shape"]) -> Float[Tensor, " processes *shape"]:
    """Return the tensors of all processes, stacked by rank.

    >>> gather(torch.ones(2))
    tensor([[1., 1.]])
    """
    _, processes = place()
    if processes == 1:
        return x.unsqueeze(0)
    gathered = x.new_empty(processes * x.numel())
    dist.all_gather_into_tensor(gathered, x.reshape(-1).contiguous())
    return gathered.reshape(processes, *x.shape)


def sum_over_processes(x: Float[Tensor, " numbers"]) -> Float[Tensor, " numbers"]:
    """Return the pairwise sum of the vectors of all processes, the same bits in each of them.

    Each process gathers all of a small vector. Of a large one it receives a slice from each of the others, sums it, and
    gathers the sums: two vectors travel to each process, however many there are.

    >>> sum_over_processes(torch.ones(2))
    tensor([1., 1.])
    """
    _, processes = place()
    if processes <= 2 or len(x) <= SMALL:
        return pairwise_sum(gather(x))
    sent = _padded(x, processes)
    received = torch.empty_like(sent)
    dist.all_to_all_single(received, sent)
    return gather(pairwise_sum(received.reshape(processes, -1))).reshape(-1)[: len(x)]


def _padded(x: Float[Tensor, " numbers"], processes: Count) -> Float[Tensor, " padded"]:
    """Return the vector with zeros behind it, so that it can be cut evenly."""
    return F.pad(x, (0, -len(x) % processes))


def part_gradient(
    weights: tuple[Params, Params],
    x: Tensor,
    y: Tensor,
    *,
    key: Int64[Tensor, ""],
    objective: Callable,
    accumulate: Count = 1,
) -> Params:
    """Return what one part gives: {"grads", "metrics", "moved": new state - state}, for (params, state) = weights.

    >>> objective = lambda params, state, x, y, key: ((params["w"] * x).mean(), ({"loss": x.mean()}, state))
    >>> x, y, key = torch.tensor([1.0, 3.0]), torch.tensor([0, 0]), torch.tensor(0)
    >>> part_gradient(({"w": torch.ones(1)}, {}), x, y, key=key, objective=objective)
    {'grads': {'w': tensor([2.])}, 'metrics': {'loss': tensor(2.)}, 'moved': {}}
    """
    params, state = weights
    grads, (_, (metrics, moved)) = gradient_function(objective, accumulate)(params, state, x, y, key=key)
    return {"grads": grads, "metrics": metrics, "moved": tree.map(torch.sub, moved, state)}


def parts_step(
    ts: TrainState,
    x: Tensor,
    y: Tensor,
    *,
    key: Int64[Tensor, ""],
    gradient: Callable,
    optimizer: Optimizer,
    parts: Count,
) -> tuple[TrainState, Metrics]:
    """Do this process's parts of a batch, sum over all of them, update: the step of `data_parallel_step`.

    Gradients, metrics and the movement of the state are means over the targets that count, so each part weighs as many
    as it has. `gradient` is a `part_gradient`.

    >>> from fn.optim import sgd
    >>> objective = lambda params, state, x, y, key: ((params["w"] * x).mean(), ({"loss": x.mean()}, state))
    >>> ts = TrainState({"w": torch.ones(1)}, {}, sgd(lr=1.0).init({"w": torch.ones(1)}))
    >>> options = {"gradient": partial(part_gradient, objective=objective), "optimizer": sgd(lr=1.0), "parts": 2}
    >>> parts_step(ts, torch.tensor([1.0, 3.0, 5.0]), torch.zeros(3).long(), key=torch.tensor(0), **options)[1]
    {'loss': tensor(3.), 'grad_norm': tensor(3.)}
    """
    key = fold_in(key, ts.opt_state["step"])
    dtype = torch.promote_types(common_dtype(tree.leaves(ts.params)), torch.float32)
    shares, xs, ys = part_shares(y, parts, dtype), x.tensor_split(parts), y.tensor_split(parts)
    branches, given = [], {}
    for i in own_parts(parts, *place()):
        full = i if len(ys[i]) else 0  # an empty part does the first one's work, and weighs 0
        given = gradient((ts.params, ts.state), xs[full], ys[full], key=fold_in(key, i))
        branches = add_in_pairs(branches, _weigh(to_vector(given).to(dtype), shares[i]))
    total = from_vector(sum_over_processes(sum_of_branches(branches)), given)
    params, opt_state = optimizer.update(ts.params, total["grads"], ts.opt_state)
    state = tree.map(torch.add, ts.state, total["moved"])
    return TrainState(params, state, opt_state), total["metrics"] | {"grad_norm": global_norm(total["grads"])}


def _weigh(x: Float[Tensor, " numbers"], share: Float[Tensor, ""]) -> Float[Tensor, " numbers"]:
    """Return x · share; 0 where the share is 0, though x may be NaN."""
    return torch.where(share > 0, x * share, 0.0)


def data_parallel_step(
    objective: Callable,
    optimizer: Optimizer,
    *,
    parts: Count,
    accumulate: Count = 1,
    compile_for: Natural = 0,
    whole_norm: bool = False,
) -> Callable:
    """Return step(ts, x, y, *, key) -> (ts, metrics), `train_step` shared by all processes.

    Every process calls it with the same arguments, the whole batch among them, and gets the same result, which is that
    of one process to the bit. `objective` is that of `train_step`; a part is accumulated by itself, in so many parts.
    Batch norm takes the statistics of a part, and its running ones move by the mean over the parts.

    With `compile_for`, the size of a whole batch, the gradient of a part of one runs compiled, by itself: a graph of
    several parts would be fused otherwise where a process has more of them. The update may be: jit(optimizer.update).

    Where batch norm is to see the whole batch, take a model of `whole_batch_norm`, say `whole_norm`, and have as many
    processes as parts, each with an example at least.

    >>> from fn.models.mlp import mlp
    >>> from fn.optim import sgd
    >>> from fn.train import classification_loss, init_train_state
    >>> model, optimizer = mlp((1, 4, 4), 3, hidden=(5,)), sgd(lr=0.1)
    >>> step = data_parallel_step(partial(classification_loss, apply=model.apply), optimizer, parts=4)
    >>> ts = init_train_state(model, optimizer, seed=0)
    >>> ts, metrics = step(ts, torch.ones(6, 1, 4, 4), torch.tensor([0, 1, 2, 0, 1, 2]), key=torch.tensor(0))
    >>> sorted(metrics), ts.opt_state["step"]
    (['accuracy', 'grad_norm', 'loss'], tensor(1))
    """
    gradient = partial(part_gradient, objective=objective, accumulate=accumulate)
    if whole_norm:
        if compile_for or accumulate > 1:
            raise ValueError(
                "whole_norm: a step whose processes meet at every batch norm is neither compiled nor accumulated"
            )
        gradient = partial(_one_part_each, gradient=gradient, parts=parts)
    if compile_for:
        sizes = {len(piece) for piece in torch.empty(compile_for).tensor_split(parts)}
        gradient = partial(_compiled_or_not, whole=jit(gradient), rest=gradient, sizes=frozenset(sizes))
    return partial(parts_step, gradient=gradient, optimizer=optimizer, parts=parts)


def _one_part_each(weights: tuple, x: Tensor, y: Tensor, *, key: Tensor, gradient: Callable, parts: int) -> Params:
    if place()[1] != parts:
        raise ValueError(f"whole_norm: {parts} parts want as many processes, as they go through a layer together")
    return gradient(weights, x, y, key=key)


def _compiled_or_not(
    weights: tuple, x: Tensor, y: Tensor, *, key: Tensor, whole: Callable, rest: Callable, sizes: frozenset[int]
) -> Params:
    return (whole if len(y) in sizes else rest)(weights, x, y, key=key)


class SumOverProcesses(torch.autograd.Function):
    """The sum over processes of what each has, and of the gradients with respect to it, which reach all of them.

    `share` is the weight of this process's loss in the mean over all. Each of them is weighed after its gradient, so a
    gradient that goes to another process is multiplied by the weight it comes with, and divided by that of its goal.
    """

    @staticmethod
    def forward(x: Float[Tensor, " numbers"], share: Float[Tensor, ""]) -> Float[Tensor, " numbers"]:
        return sum_over_processes(x)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(inputs[1])

    @staticmethod
    def backward(ctx, *grads):
        (share,) = ctx.saved_tensors
        return SumOverProcesses.apply(grads[0] * share, torch.ones_like(share)) / share, None


def moments_over_processes(
    x: Float[Tensor, "batch channels *positions"],
) -> tuple[Float[Tensor, " channels"], Float[Tensor, " channels"], Float[Tensor, ""]]:
    """Return the `moments` of a batch whose parts the processes hold, one each; differentiable.

    A process weighs as many values as it has, as in the loss where every target counts.

    >>> moments_over_processes(torch.tensor([[1.0, 10.0], [3.0, 30.0]]))
    (tensor([ 2., 20.]), tensor([  1., 100.]), tensor(2.))
    """
    axes, own = [0, *range(2, x.ndim)], x.new_tensor([x.numel() // x.shape[1]])
    count = sum_over_processes(own)[0]
    sum_all = partial(SumOverProcesses.apply, share=own[0] / count)
    mean = sum_all(x.sum(axes)) / count
    centred = x - mean.reshape(-1, *[1] * (x.ndim - 2))
    return mean, sum_all(centred.square().sum(axes)) / count, count


def whole_batch_norm(model: Model) -> Model:
    """Return the model with batch norm that takes the statistics of all processes' parts; for a `whole_norm` step.

    >>> from fn.models.cnn import cnn
    >>> model = whole_batch_norm(cnn((1, 8, 8), 3, widths=(4,)))
    >>> params, state = model.init(torch.Generator().manual_seed(0))
    >>> model.apply(params, state, torch.ones(2, 1, 8, 8), train=True)[0].shape
    torch.Size([2, 3])
    """
    return model._replace(apply=partial(_apply_together, apply=model.apply))


def _apply_together(params: Params, state: Params, x: Tensor, *, train: bool, apply: Callable, **options) -> tuple:
    modes = norm_modes(state, moments_over_processes if train else False)
    return apply(params, state, x, train=train, modes=modes, **options)


def sharded(optimizer: Optimizer) -> Optimizer:
    """Return the optimizer with its state divided among the processes: ZeRO-1. Rajbhandari et al. 2020.

    Each process updates a slice of the parameters, laid end to end, and all slices are gathered: the same bits, as
    these updates are element by element. Clip around it, clip_by_global_norm(sharded(…), …), as a norm is not.
    ValueError for parameters of several dtypes.

    >>> from fn.optim import sgd
    >>> optimizer, params = sharded(sgd(lr=0.1)), {"w": torch.ones(2, 2)}
    >>> state = optimizer.init(params)
    >>> state["velocity"]["slice"].shape
    torch.Size([4])
    >>> optimizer.update(params, {"w": torch.ones(2, 2)}, state)[0]
    {'w': tensor([[0.9000, 0.9000],
            [0.9000, 0.9000]])}
    """
    return Optimizer(partial(_init_slice, init=optimizer.init), partial(zero1_update, update=optimizer.update))


def _slice(params: Params) -> Params:
    """Return {"slice": what this process has of the leaves end to end}, of which only that is copied."""
    if len({leaf.dtype for leaf in tree.leaves(params)}) > 1:
        raise ValueError("sharded: the parameters have several dtypes")
    rank, processes = place()
    each = -(-tree.size(params) // processes)
    pieces, before = [], rank * each  # numbers of other processes before this one's
    for _, leaf in sorted(tree.flatten(params).items()):
        pieces.append(leaf.reshape(-1)[max(before, 0) : max(before + each, 0)])
        before -= leaf.numel()
    own = torch.cat(pieces)
    return {"slice": F.pad(own, (0, each - len(own)))}


def _init_slice(params: Params, *, init: Callable) -> Params:
    return init(_slice(params))


def zero1_update(params: Params, grads: Params, state: Params, *, update: Callable) -> tuple[Params, Params]:
    """Return (params, state) after an update of which each process does a slice, and gathers the slices of all.

    The leaves lie end to end, see `to_vector`, with zeros behind them so that all slices are as long; `update` takes
    that of this process as the tree {"slice": vector}, and `state` is that of such a tree. All processes give the same
    params and grads. ValueError for parameters of several dtypes.

    >>> from fn.optim import sgd_update
    >>> state = {"step": torch.tensor(0), "velocity": {"slice": torch.zeros(2)}}
    >>> zero1_update({"w": torch.ones(2)}, {"w": torch.ones(2)}, state, update=partial(sgd_update, lr=0.5))[0]
    {'w': tensor([0.5000, 0.5000])}
    """
    new, state = update(_slice(params), _slice(grads), state)
    return from_vector(gather(new["slice"]).reshape(-1), params), state


def gather_state(opt_state: Params, params: Params) -> Params:
    """Return the whole state of a `sharded` optimizer, as the optimizer itself would have it; all processes call this.

    Process 0 gets it, to save it; the others get {}, so that the whole is in one memory alone.

    >>> from fn.optim import adam
    >>> params = {"w": torch.ones(2, 2)}
    >>> gather_state(sharded(adam(lr=0.1)).init(params), params).keys()
    dict_keys(['step', 'mean', 'square'])
    """
    whole = {}
    for name, part in opt_state.items():
        if isinstance(part, dict):
            vector = _gather_to_first(part["slice"])
            whole[name] = None if vector is None else from_vector(vector, params)
        else:
            whole[name] = part
    return whole if place()[0] == 0 else {}


def _gather_to_first(x: Float[Tensor, " numbers"]) -> Float[Tensor, " all"] | None:
    """Return the vectors of all processes end to end in process 0; None in the others."""
    rank, processes = place()
    if processes == 1:
        return x
    pieces = [torch.empty_like(x) for _ in range(processes)] if rank == 0 else None
    dist.gather(x, pieces, dst=0)
    return torch.cat(pieces) if pieces else None


def scatter_state(opt_state: Params, like: Params) -> Params:
    """Return this process's slice of the whole state that process 0 has: the inverse of `gather_state`.

    `like` has the shapes: what a `sharded` optimizer's init gives in this process.

    >>> from fn.optim import sgd
    >>> like = sharded(sgd(lr=0.1)).init({"w": torch.ones(2), "b": torch.zeros(1)})
    >>> scatter_state({"step": torch.tensor(3), "velocity": {"w": torch.ones(2), "b": torch.zeros(1)}}, like)
    {'step': tensor(3), 'velocity': {'slice': tensor([0., 1., 1.])}}
    """
    rank, processes = place()
    own: Params = {}
    for name, part in like.items():
        divided, pieces = isinstance(part, dict), None
        if rank == 0:
            given = opt_state[name]
            pieces = list(_padded(to_vector(given), processes).chunk(processes)) if divided else [given] * processes
        received = pieces[0].clone() if pieces else torch.empty_like(part["slice"] if divided else part)
        if processes > 1:
            dist.scatter(received, pieces, src=0)
        own[name] = {"slice": received} if divided else received
    return own
