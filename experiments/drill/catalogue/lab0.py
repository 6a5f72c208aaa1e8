"""Lab 0: a perceptron, its losses, optimizers and gradients"""

from experiments.drill.catalogue.row import (
    FOLLOWS,
    FOLLOWS_ROUGHLY,
    GRADCHECK,
    LAYERS,
    LOOPS,
    LOSSES,
    ODD,
    OPTIM,
    PARITY,
    TRAIN,
    Drill,
    cases,
)

IN_DTYPE = "test_a_softmax_sums_in_the_dtype_that_is_asked_for"
AUTOGRAD = ("backward", "torch.autograd")
AUTOGRAD += tuple(f"torch.func.{f}" for f in ("grad", "grad_and_value", "vjp", "jvp", "jacrev", "jacfwd"))

DRILLS = {
    "linear": Drill(
        "fn.layers:linear",
        "Lab 0 · layers",
        1,
        cases(PARITY, "linear", "linear, one row", "linear, sequences"),
        (
            "Which axis of x meets which axis of the weight? Read the annotations: the name that both have is summed.",
            "The weight is (d_out, d_in), so it is transposed; the bias broadcasts over every axis of the batch.",
            "y = x @ weight.T, plus the bias if there is one",
        ),
        ("linear", "addmm"),
        options=cases(PARITY, "linear, no bias"),
    ),
    "relu": Drill(
        "fn.layers:relu",
        "Lab 0 · layers",
        1,
        cases(PARITY, "relu, away from 0"),
        (
            "Two things are asked for beside max(x, 0): the slope at exactly 0, and what becomes of NaN.",
            "torch.maximum shares the gradient of a tie between both arguments: a slope of one half at 0.",
            "torch.where(x <= 0, 0.0, x): a NaN is not <= 0, and the constant has slope 0",
        ),
        ("relu", "relu_", "threshold", "hardtanh", "leaky_relu", "prelu", "rrelu"),
        edges=(*cases(PARITY, "relu"), *cases(ODD, "odd-relu", "extreme-relu", "all masked-relu")),
    ),
    "softmax": Drill(
        "fn.layers:softmax",
        "Lab 0 · layers",
        1,
        cases(PARITY, "softmax", "softmax, last"),
        (
            "exp of 1000 is infinite. Which number may be subtracted from every entry without changing the result?",
            "The largest along `dim`, with keepdim=True so that it broadcasts; it needs no gradient.",
            "e = torch.exp(x - x.detach().amax(dim, keepdim=True)), over its sum along dim",
        ),
        ("softmax", "log_softmax", "special_softmax", "softmin", "logsumexp", "fn.layers.log_softmax"),
        options=(*cases(ODD, "extreme-softmax"), *cases(f"{LAYERS}{IN_DTYPE}", "softmax")),
        edges=cases(ODD, "odd-softmax", "all masked-softmax"),
    ),
    "cross_entropy": Drill(
        "fn.losses:cross_entropy",
        "Lab 0 · losses",
        2,
        (f"{LOSSES}test_cross_entropy_of_logits_and_classes_is_torchs",),
        (
            "Logits in. The classes are axis 1, also where positions follow; the mean is over what is not ignored.",
            "log_softmax over axis 1, then gather each target's entry; an ignored target needs a valid index first.",
            "Smoothing: (1 - ε) times the loss of the target, plus ε times the mean of -log p over all classes.",
        ),
        ("cross_entropy", "nll_loss", "softmax", "log_softmax"),
        options=(f"{LOSSES}test_the_options_of_cross_entropy_are_torchs",),
        edges=(
            f"{LOSSES}test_cross_entropy_is_torchs",
            f"{LOSSES}test_an_impossible_class_costs_nothing_without_smoothing",
        ),
    ),
    "layer_norm": Drill(
        "fn.layers:layer_norm",
        "Lab 0 · layers",
        1,
        cases(PARITY, "layer_norm, plain"),
        (
            "Over which axes are the mean and the variance? As many of the last ones as normalized_shape has.",
            "The variance is the biased one (divide by n), and ε is added to it before the root.",
            "(x - mean) * torch.rsqrt(var + eps), then weight and bias, each if there",
        ),
        ("layer_norm", "native_layer_norm", "group_norm", "rms_norm", "batch_norm", "instance_norm"),
        options=cases(PARITY, "layer_norm", "layer_norm, no bias", "layer_norm, two axes", "layer_norm, eps"),
        edges=(
            *cases(f"{LAYERS}test_far_from_zero_the_variance_is_as_exact", "layer_norm"),
            f"{LAYERS}test_layer_norm_refuses_another_shape",
        ),
    ),
    "accuracy": Drill(
        "fn.metrics:accuracy",
        "Lab 0 · metrics",
        1,
        cases(f"{LOSSES}test_accuracy_is_scikit_learns", "no ties"),
        (
            "Which axis holds the classes?",
            "argmax over axis 1 takes the first of equal scores; it is never -100.",
            "How many are right, over how many are not -100",
        ),
        options=(f"{LOSSES}test_accuracy_over_positions_is_that_of_all_their_targets",),
        edges=(
            *cases(f"{LOSSES}test_accuracy_is_scikit_learns", "ties"),
            f"{LOSSES}test_the_metrics_hang_together",
            f"{LOSSES}test_accuracy_leaves_out_what_is_ignored",
        ),
    ),
    "sgd": Drill(
        "fn.optim:sgd_update",
        "Lab 0 · optimizers",
        2,
        (
            *cases(FOLLOWS, "sgd", "momentum"),
            *cases(f"{OPTIM}test_nothing_given_is_changed", "momentum"),
        ),
        (
            "The state holds `step` and `velocity`, as sgd_init makes it; return new ones, change nothing.",
            "Decay is added to the gradient first; then v ← μv + g; then the move is along v.",
            "Nesterov moves along g + μv, with the new v.",
        ),
        ("torch.optim",),
        ("sgd_init",),
        options=cases(FOLLOWS, "nesterov", "sgd with decay", "all of sgd"),
    ),
    "adam": Drill(
        "fn.optim:adam_update",
        "Lab 0 · optimizers",
        2,
        (
            *cases(FOLLOWS_ROUGHLY, "adam", "adam with eps"),
            *cases(f"{OPTIM}test_nothing_given_is_changed", "adam"),
        ),
        (
            "The state holds `step`, `mean` and `square`, as adam_init makes it. Steps are counted from 1.",
            "Both moments start at 0 and are too small at first: divide each by 1 - βᵗ.",
            "ε is added to the root of the corrected square, outside of it.",
        ),
        ("torch.optim",),
        ("adam_init",),
        options=cases(FOLLOWS_ROUGHLY, "adam with L2"),
        edges=cases(FOLLOWS, "adam", "adam with eps", "adam with L2"),
    ),
    "two_layer_grads": Drill(
        "fn.models.mlp:two_layer_grads",
        "Lab 0 · gradients",
        3,
        (f"{TRAIN}test_backward_by_hand",),
        (
            "Forward first, and keep what the way back needs: z, h and the logits a.",
            "∂L/∂a = (softmax(a) - onehot) / B; a weight's gradient is what came out, transposed, times what went in.",
            "Through relu: the gradient passes where z > 0.",
        ),
        (*AUTOGRAD, "fn.gradcheck"),
    ),
    "numerical_grad": Drill(
        "fn.gradcheck:numerical_grad",
        "Lab 0 · gradients",
        2,
        (f"{GRADCHECK}test_numerical_grad_is_autograds",),
        (
            "Two values of f per entry of θ, on either side of it, and nothing else moved.",
            "(f(θ + εe) - f(θ - εe)) / 2ε: from one side alone the error would be of order ε, not ε².",
            "tree.flatten gives the leaves by name, tree.unflatten the tree back; move a copy of the leaf.",
        ),
        AUTOGRAD,
        edges=(f"{GRADCHECK}test_nothing_is_left_moved",),
    ),
    "functional_loop": Drill(
        "experiments.lab0_mlp:functional_loop",
        "Lab 0 · the whole loop",
        2,
        cases(f"{LOOPS}test_a_loop_is_gradient_descent_by_hand", "functional"),
        (
            "An objective is a function of params; grad_and_value makes of it one that returns (grads, loss).",
            "SGD of rate 0.1 and momentum 0.9: sgd_update, its first state from sgd_init; all values are new ones.",
            "logits, _ = mlp_apply(params, {}, x, train=True, layers=2). Return the loss before each step.",
        ),
        ("torch.optim", "backward"),
    ),
    "classic_loop": Drill(
        "experiments.lab0_mlp:classic_loop",
        "Lab 0 · the whole loop",
        1,
        cases(f"{LOOPS}test_a_loop_is_gradient_descent_by_hand", "classic"),
        (
            "Five lines: forward, loss, backward, step, zero_grad. The optimizer is made once.",
            "torch.optim.SGD with rate 0.1 and momentum 0.9; cross_entropy takes the logits as they are.",
            "backward adds to what is in .grad. loss.item() is a number without its graph.",
        ),
    ),
}
