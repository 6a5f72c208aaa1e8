"""Lab 1: convolution and what counts as right"""

from experiments.drill.catalogue.row import CONV, LAYERS, LOSSES, PARITY, Drill, cases

DRILLS = {
    "batch_norm": Drill(
        "fn.layers:batch_norm",
        "Lab 1 · layers",
        2,
        (
            *cases(PARITY, "batch_norm", "batch_norm, images", "batch_norm, eval"),
            f"{LAYERS}test_batch_norm_of_a_batch_is_standard",
        ),
        (
            "One mean and one variance per channel: over the batch and every position.",
            "Two variances: normalise with the biased one; the running one moves towards the unbiased one.",
            "new = (1 - momentum) * running + momentum * of the batch, detached; in evaluation nothing moves.",
        ),
        ("batch_norm", "native_batch_norm", "instance_norm", "layer_norm", "group_norm"),
        options=cases(PARITY, *(f"batch_norm, {case}" for case in ("sequences", "eps", "eval, images", "weight"))),
        edges=(
            *cases(f"{LAYERS}test_far_from_zero_the_variance_is_as_exact", "batch_norm"),
            *cases(f"{LAYERS}test_batch_norm_refuses_to_train_on_one_value_per_channel", "shape0"),
        ),
    ),
    "conv2d_naive": Drill(
        "fn.conv:conv2d_naive",
        "Lab 1 · convolution",
        3,
        cases(f"{CONV}test_a_convolution_without_options_is_torchs", "conv2d_naive"),
        (
            "Pad first: resolve_padding gives (before, after) of both axes. Which rows does output (i, j) see?",
            "x[..., s·i : s·i + d·(k - 1) + 1 : d, …] is the window, of the size of the kernel.",
            "Groups: channels and kernels are dealt into that many convolutions, the first with the first.",
        ),
        ("conv2d", "conv1d", "conv3d", "convolution", "unfold", "fn.conv.conv2d_unfold", "fn.conv.conv2d"),
        ("pair", "resolve_padding"),
        options=cases(f"{CONV}test_convolution_is_torchs", "conv2d_naive"),
    ),
    "conv2d_unfold": Drill(
        "fn.conv:conv2d_unfold",
        "Lab 1 · convolution",
        3,
        cases(f"{CONV}test_a_convolution_without_options_is_torchs", "conv2d_unfold"),
        (
            "A row per kernel, a column per window: what is the size of each axis of the product?",
            "torch.nn.functional.unfold gives the columns (batch, channels · kernel, windows), if you pad before it.",
            "Deal the columns and the kernels into groups, multiply, and give the windows their two axes back.",
        ),
        ("conv2d", "conv1d", "conv3d", "convolution", "fn.conv.conv2d_naive", "fn.conv.conv2d"),
        ("pair", "resolve_padding", "output_size"),
        options=cases(f"{CONV}test_convolution_is_torchs", "conv2d_unfold"),
    ),
    "max_pool2d": Drill(
        "fn.conv:max_pool2d",
        "Lab 1 · convolution",
        2,
        (f"{CONV}test_max_pool2d_is_torchs",),
        (
            "pool_padding gives (before, after) of both axes. With what is a maximum padded?",
            "With -∞. Tensor.unfold gives the windows of an axis; every d-th entry of each is what a dilation sees.",
            "amax shares the gradient of a tie, max(dim) gives it to one entry: which is asked for?",
        ),
        (
            "max_pool2d",
            "max_pool2d_with_indices",
            "max_pool1d",
            "adaptive_max_pool2d",
            "fn.conv.max_pool2d_naive",
        ),
        ("pair", "pool_padding"),
        edges=(f"{CONV}test_of_equal_maxima_the_first_gets_the_gradient",),
    ),
    "top_k_accuracy": Drill(
        "fn.metrics:top_k_accuracy",
        "Lab 1 · metrics",
        2,
        cases(f"{LOSSES}test_top_k_accuracy_is_scikit_learns", "no ties"),
        (
            "A target is among the best k if fewer than k classes outrank it.",
            "A class outranks it with a larger score, or with an equal one and a lower number.",
            "What is ignored is left out of the sum and of the number that divides it.",
        ),
        options=cases(f"{LOSSES}test_metrics_over_positions_count_what_is_not_ignored", "no ties"),
        edges=(
            *cases(f"{LOSSES}test_top_k_accuracy_is_scikit_learns", "ties"),
            *cases(f"{LOSSES}test_metrics_over_positions_count_what_is_not_ignored", "ties"),
            f"{LOSSES}test_of_equal_scores_the_lower_class_outranks",
            *cases(f"{LOSSES}test_top_k_accuracy_refuses_a_k_beyond_the_classes", "0", "4"),
        ),
    ),
}
