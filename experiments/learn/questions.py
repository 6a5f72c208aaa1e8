"""Questions: what does this print? One right choice of each is what the code prints, which a test runs.

`import torch` and `F`, torch.nn.functional, come before each. A line of code fits a terminal of 60 columns, indented.
"""

from typing import NamedTuple


class Question(NamedTuple):
    code: str
    choices: tuple[str, ...]
    right: int
    """the number of the choice, from 1"""
    why: str

    @property
    def answer(self) -> str:
        return self.choices[self.right - 1]


QUESTIONS = {
    "broadcasting": Question(
        "a, b = torch.ones(4, 1), torch.ones(4)\nprint(tuple((a - b).shape))",
        ("(4,)", "(4, 1)", "(4, 4)", "an error"),
        3,
        "Shapes are lined up from the right: (4, 1) beside (1, 4) becomes (4, 4), every entry against every other.",
    ),
    "linear": Question(
        "layer = torch.nn.Linear(3, 5)\nprint(tuple(layer.weight.shape))",
        ("(3, 5)", "(5, 3)", "(3, 5, 1)", "(8,)"),
        2,
        "The weight is (d_out, d_in): y = x @ W.T + b.",
    ),
    "relu": Question(
        "x = torch.zeros(1, requires_grad=True)\nF.relu(x).sum().backward()\nprint(x.grad.item())",
        ("0.0", "0.5", "1.0", "nan"),
        1,
        "torch gives the corner at 0 the slope 0; torch.maximum(x, 0) would share it, one half.",
    ),
    "softmax": Question(
        "x = torch.zeros(2, 4)  # two examples, four classes\nprint(F.softmax(x, dim=0)[0, 0].item())",
        ("0.25", "0.5", "1.0", "0.125"),
        2,
        "dim is the axis that sums to one: here the two examples. For classes it is dim=1.",
    ),
    "cross_entropy": Question(
        "x, y = torch.zeros(2, 10), torch.tensor([3, -100])\n"
        "# log 10 = 2.30\nprint(round(F.cross_entropy(x, y).item(), 2))",
        ("1.15", "2.3", "nan", "0.1"),
        2,
        "It wants logits. A target of -100 counts neither in the sum nor in the number that divides it.",
    ),
    "accuracy": Question(
        "x = torch.tensor([[1.0, 1.0], [0.0, 1.0]])\ny = torch.tensor([1, 1])\n"
        "print((x.argmax(1) == y).float().mean().item())",
        ("0.0", "0.5", "1.0", "0.75"),
        2,
        "Of equal scores argmax takes the first, class 0: the first example is wrong.",
    ),
    "norms": Question(
        "x = torch.tensor([[0.0, 2.0], [4.0, 6.0]])\nprint(F.layer_norm(x, (2,)).round().tolist())",
        (
            "[[-1.0, 1.0], [-1.0, 1.0]]",
            "[[-1.0, -1.0], [1.0, 1.0]]",
            "[[-1.0, 0.0], [0.0, 1.0]]",
            "[[0.0, 2.0], [4.0, 6.0]]",
        ),
        1,
        "Layer norm standardises each example over its features; batch norm each feature over the examples.",
    ),
    "gradients": Question(
        "x = torch.tensor(2.0, requires_grad=True)\ny = x * x.detach()\ny.backward()\nprint(x.grad.item())",
        ("4.0", "2.0", "0.0", "an error"),
        2,
        "detach makes a constant of the same value: the derivative of x · 2 is 2.",
    ),
    "loops": Question(
        "w = torch.ones(1, requires_grad=True)\nfor _ in range(3):\n    (2 * w).sum().backward()\nprint(w.grad.item())",
        ("2.0", "6.0", "8.0", "an error"),
        2,
        "backward adds to .grad; without zero_grad three gradients of 2 pile up.",
    ),
    "optimizers": Question(
        "w = torch.nn.Parameter(torch.zeros(1))\n"
        "adam = torch.optim.Adam([w], lr=0.1)\n"
        "w.grad = torch.tensor([1000.0])\nadam.step()\nprint(round(w.item(), 3))",
        ("-100.0", "-0.1", "-0.001", "0.0"),
        2,
        "Adam divides by the root of the corrected square: its first step is lr, however large the gradient.",
    ),
    "schedules": Question(
        "from torch.optim.lr_scheduler import CosineAnnealingLR\n\n"
        "w = torch.nn.Parameter(torch.zeros(1))\n"
        "sgd = torch.optim.SGD([w], lr=1.0)\n"
        "cosine = CosineAnnealingLR(sgd, T_max=4)\n"
        "for _ in range(2):\n    sgd.step()\n    cosine.step()\nprint(round(sgd.param_groups[0]['lr'], 3))",
        ("0.75", "0.5", "0.25", "0.707"),
        2,
        "Half a cosine from 1 to 0 in four steps: halfway it is one half.",
    ),
    "dropout": Question(
        "x = torch.ones(3)\nprint(F.dropout(x, p=0.5, training=False).tolist())",
        ("[0.5, 0.5, 0.5]", "[1.0, 1.0, 1.0]", "[2.0, 2.0, 2.0]", "some are 0"),
        2,
        "What is kept is scaled up in training, by 1 / (1 - p), so that evaluation has nothing to do.",
    ),
    "convolution": Question(
        "x, w = torch.zeros(1, 3, 28, 28), torch.zeros(8, 3, 5, 5)\n"
        "print(tuple(F.conv2d(x, w, stride=2, padding=2).shape))",
        ("(1, 8, 14, 14)", "(1, 8, 13, 13)", "(1, 8, 15, 15)", "(1, 3, 14, 14)"),
        1,
        "⌊(28 + 2·2 - 5) / 2⌋ + 1 = 14.",
    ),
    "training": Question(
        "means = [1.0, 4.0]  # the mean loss of each of two batches\n"
        "sizes = [3, 1]  # their examples; the last one is short\n"
        "total = sum(m * n for m, n in zip(means, sizes))\nprint(total / sum(sizes))",
        ("2.5", "1.75", "5.0", "1.25"),
        2,
        "A mean over an epoch weighs each batch by its examples; the mean of means, 2.5, overrates a short last batch.",
    ),
    "checkpoints": Question(
        "model = torch.nn.Linear(1, 1)\nkept = model.state_dict()\n"
        "with torch.no_grad():\n    model.bias.fill_(7.0)\nprint(kept['bias'].item())",
        ("7.0", "0.0", "the first value", "an error"),
        1,
        "state_dict() holds the very tensors, no copies: what is kept moves on with the model.",
    ),
    "attention": Question(
        "q, k = torch.zeros(1, 2, 4), torch.zeros(1, 2, 4)\nv = torch.tensor([[[1.0], [3.0]]])\n"
        "attend = F.scaled_dot_product_attention\n"
        "print(attend(q, k, v, is_causal=True).flatten().tolist())",
        ("[2.0, 2.0]", "[1.0, 2.0]", "[1.0, 3.0]", "[0.0, 1.0]"),
        2,
        "The first query sees its own key alone; the second, with equal scores, the mean of both.",
    ),
    "positions": Question(
        "from torch.nn import MultiheadAttention\n\n"
        "attend = MultiheadAttention(4, 1, batch_first=True)\n"
        "x = torch.randn(1, 3, 4)\nback = x.flip(1)\n"
        "a, b = attend(x, x, x)[0], attend(back, back, back)[0]\n"
        "print(torch.allclose(a, b.flip(1), atol=1e-5))",
        ("True", "False", "an error", "it depends on the weights"),
        1,
        "Attention knows no order: of a reversed sequence it gives the reversed result. Positions have to be put in.",
    ),
    "transfer": Question(
        "norm = torch.nn.BatchNorm1d(1).requires_grad_(False)\n"
        "norm(torch.tensor([[2.0], [4.0]]))\nprint(round(norm.running_mean.item(), 3))",
        ("0.0", "0.3", "3.0", "an error"),
        2,
        "requires_grad=False freezes weights alone; the running mean moves in every forward pass of training.",
    ),
    "boxes": Question(
        "from torchvision.ops import box_iou\n"
        "a = torch.tensor([[0.0, 0, 2, 2]])\nb = torch.tensor([[1.0, 0, 3, 2]])\nprint(round(box_iou(a, b).item(), 3))",
        ("0.5", "0.333", "0.25", "0.667"),
        2,
        "They share 2; together they cover 4 + 4 - 2 = 6.",
    ),
    "average_precision": Question(
        "# three detections, the surest first; two objects\nright = torch.tensor([1.0, 0.0, 1.0])\n"
        "precision = right.cumsum(0) / torch.arange(1, 4)\nprint([round(p, 2) for p in precision.tolist()])",
        ("[1.0, 0.5, 0.67]", "[1.0, 0.0, 1.0]", "[0.5, 0.5, 1.0]", "[1.0, 0.5, 0.33]"),
        1,
        "Of the first n detections, the share that is right. Average precision takes the best from each recall on.",
    ),
    "data": Question(
        "from torch.utils.data import DataLoader\n\n"
        "loader = DataLoader(range(10), batch_size=4)\nprint([len(batch) for batch in loader])",
        ("[4, 4]", "[4, 4, 2]", "[4, 4, 4]", "[10]"),
        2,
        "The last batch is shorter, unless drop_last=True.",
    ),
    "processes": Question(
        "a, b, c, d = torch.tensor([1e8, 1.0, -1e8, 1.0])\n"
        "in_turn = ((a + b) + c) + d\nin_pairs = (a + b) + (c + d)\nprint(in_turn.item(), in_pairs.item())",
        ("2.0 2.0", "1.0 0.0", "1.0 1.0", "0.0 0.0"),
        2,
        "A sum of floating point depends on its order, and all_reduce's order on the number of processes.",
    ),
    "numbers": Question(
        "x = torch.tensor([200], dtype=torch.uint8)\nprint((x + 100).item())",
        ("300", "44", "255", "an error"),
        2,
        "Bytes wrap around: 300 - 256. Make a float of an image before you compute with it.",
    ),
    "idioms": Question(
        "f = lambda w: (w ** 2).sum()\nprint(torch.func.grad(f)(torch.tensor([3.0])).tolist())",
        ("[9.0]", "[6.0]", "None", "an error"),
        2,
        "torch.func.grad returns the gradient as a value: no requires_grad, no backward, nothing left in .grad.",
    ),
    "devices": Question(
        "class M(torch.nn.Module):\n    def __init__(self):\n        super().__init__()\n"
        "        self.mean = torch.zeros(3)\n\n"
        "print(M().to('meta').mean.device)",
        ("meta", "cpu", "an error", "cuda"),
        2,
        "A tensor in a plain attribute is neither a parameter nor a buffer: .to does not move it. register_buffer.",
    ),
}
