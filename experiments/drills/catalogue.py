"""What there is to write from memory. Each row is cut from a function of ours and graded by the tests that hold it.

A new drill is one row here, and one file of tests/drills: an answer in another style, and what people write instead.
"""

from typing import NamedTuple


class Drill(NamedTuple):
    of: str
    """where ours stands"""
    topic: str
    difficulty: int
    """1 to 3"""
    tests: tuple[str, ...]
    hints: tuple[str, ...]
    forbidden: tuple[str, ...] = ()
    """torch's ways to do it: the name of an op, or the dotted path of a function"""
    given: tuple[str, ...] = ()
    """functions beside ours that the answer may use"""


def _cases(test: str, *cases: str) -> tuple[str, ...]:
    return tuple(f"{test}[{case}]" for case in cases)


LAYERS, CONV, ATTENTION = "tests/test_layers.py::", "tests/test_conv.py::", "tests/test_attention.py::"
LOSSES, OPTIM, POSITIONS = "tests/test_losses_metrics.py::", "tests/test_optim.py::", "tests/test_positions.py::"
TRAIN, FREEZING, CHECKPOINT = "tests/test_train.py::", "tests/test_freezing.py::", "tests/test_checkpoint.py::"
BOXES, DATA, LOOPS = "tests/test_boxes.py::", "tests/test_data.py::", "tests/test_loops.py::"
GRADCHECK, FOLLOWS = "tests/test_gradcheck.py::", f"{OPTIM}test_follows_torch_for_100_steps"
PARITY = f"{LAYERS}test_is_torchs"

DRILLS = {
    "linear": Drill(
        "fn.layers:linear",
        "Lab 0 · layers",
        1,
        _cases(PARITY, "linear", "linear, no bias", "linear, one row", "linear, sequences"),
        (
            "Which axis of x meets which axis of the weight? Read the annotations: the name that both have is summed.",
            "The weight is (d_out, d_in), so it is transposed; the bias broadcasts over every axis of the batch.",
            "y = x @ weight.T, plus the bias if there is one",
        ),
        ("linear", "addmm"),
    ),
    "relu": Drill(
        "fn.layers:relu",
        "Lab 0 · layers",
        1,
        (*_cases(PARITY, "relu"), f"{LAYERS}test_odd_entries_are_treated_as_torch_does"),
        (
            "Two things are asked for beside max(x, 0): the slope at exactly 0, and what becomes of NaN.",
            "torch.maximum shares the gradient of a tie between both arguments: a slope of one half at 0.",
            "torch.where(x <= 0, 0.0, x): a NaN is not <= 0, and the constant has slope 0",
        ),
        ("relu", "relu_", "threshold", "hardtanh", "leaky_relu", "prelu", "rrelu"),
    ),
    "softmax": Drill(
        "fn.layers:softmax",
        "Lab 0 · layers",
        1,
        (*_cases(PARITY, "softmax", "softmax, last"), f"{LAYERS}test_odd_entries_are_treated_as_torch_does"),
        (
            "exp of 1000 is infinite. Which number may be subtracted from every entry without changing the result?",
            "The largest along `dim`, with keepdim=True so that it broadcasts; it needs no gradient.",
            "e = torch.exp(x - x.detach().amax(dim, keepdim=True)), over its sum along dim",
        ),
        ("softmax", "log_softmax", "special_softmax", "softmin", "logsumexp"),
    ),
    "cross_entropy": Drill(
        "fn.losses:cross_entropy",
        "Lab 0 · losses",
        2,
        (f"{LOSSES}test_cross_entropy_is_torchs", f"{LOSSES}test_an_impossible_class_costs_nothing_without_smoothing"),
        (
            "Logits in. The classes are axis 1, also where positions follow; the mean is over what is not ignored.",
            "log_softmax over axis 1, then gather each target's entry; an ignored target needs a valid index first.",
            "Smoothing: (1 - ε) times the loss of the target, plus ε times the mean of -log p over all classes.",
        ),
        ("cross_entropy", "nll_loss", "softmax", "log_softmax"),
    ),
    "layer_norm": Drill(
        "fn.layers:layer_norm",
        "Lab 0 · layers",
        1,
        _cases(PARITY, "layer_norm", "layer_norm, plain", "layer_norm, two axes", "layer_norm, eps"),
        (
            "Over which axes are the mean and the variance? As many of the last ones as normalized_shape has.",
            "The variance is the biased one (divide by n), and ε is added to it before the root.",
            "(x - mean) * torch.rsqrt(var + eps), then weight and bias, each if there",
        ),
        ("layer_norm", "native_layer_norm", "group_norm", "rms_norm", "batch_norm", "instance_norm"),
    ),
    "batch_norm": Drill(
        "fn.layers:batch_norm",
        "Lab 1 · layers",
        2,
        (
            *_cases(PARITY, "batch_norm", "batch_norm, sequences", "batch_norm, images", "batch_norm, eps"),
            *_cases(PARITY, "batch_norm, eval", "batch_norm, eval, images"),
            f"{LAYERS}test_batch_norm_of_a_batch_is_standard",
            *_cases(f"{LAYERS}test_batch_norm_refuses_to_train_on_one_value_per_channel", "shape0"),
        ),
        (
            "One mean and one variance per channel: over the batch and every position.",
            "Two variances: normalise with the biased one; the running one moves towards the unbiased one.",
            "new = (1 - momentum) * running + momentum * of the batch, detached; in evaluation nothing moves.",
        ),
        ("batch_norm", "native_batch_norm", "instance_norm", "layer_norm", "group_norm"),
    ),
    "dropout": Drill(
        "fn.layers:dropout",
        "Lab 2 · layers",
        1,
        (
            f"{LAYERS}test_dropout_keeps_a_share_of_1_minus_p_and_the_mean",
            f"{LAYERS}test_dropout_is_a_mask_and_a_function_of_its_key",
            f"{LAYERS}test_dropout_at_its_ends",
        ),
        (
            "What is E[y] if a share p of the entries is dropped? It is to be x.",
            "uniform(key, x.shape) is in [0, 1): keep where it is at least p, and divide what is kept by 1 - p.",
            "Where p is 1 everything is dropped, and 1 / (1 - p) must not be computed.",
        ),
        ("dropout", "native_dropout", "bernoulli", "alpha_dropout"),
    ),
    "conv2d_naive": Drill(
        "fn.conv:conv2d_naive",
        "Lab 1 · convolution",
        3,
        _cases(f"{CONV}test_convolution_is_torchs", "conv2d_naive"),
        (
            "Pad first: resolve_padding gives (before, after) of both axes. Which rows does output (i, j) see?",
            "x[..., s·i : s·i + d·(k - 1) + 1 : d, …] is the window, of the size of the kernel.",
            "Groups: channels and kernels are dealt into that many convolutions, the first with the first.",
        ),
        ("conv2d", "conv1d", "conv3d", "convolution", "unfold"),
        ("pair", "resolve_padding"),
    ),
    "conv2d_unfold": Drill(
        "fn.conv:conv2d_unfold",
        "Lab 1 · convolution",
        3,
        _cases(f"{CONV}test_convolution_is_torchs", "conv2d_unfold"),
        (
            "A row per kernel, a column per window: what is the size of each axis of the product?",
            "torch.nn.functional.unfold gives the columns (batch, channels · kernel, windows), if you pad before it.",
            "Deal the columns and the kernels into groups, multiply, and give the windows their two axes back.",
        ),
        ("conv2d", "conv1d", "conv3d", "convolution"),
        ("pair", "resolve_padding", "output_size"),
    ),
    "max_pool2d": Drill(
        "fn.conv:max_pool2d",
        "Lab 1 · convolution",
        2,
        (f"{CONV}test_max_pool2d_is_torchs", f"{CONV}test_of_equal_maxima_the_first_gets_the_gradient"),
        (
            "pool_padding gives (before, after) of both axes. With what is a maximum padded?",
            "With -∞. Tensor.unfold gives the windows of an axis; every d-th entry of each is what a dilation sees.",
            "amax shares the gradient of a tie, max(dim) gives it to one entry: which is asked for?",
        ),
        ("max_pool2d", "max_pool2d_with_indices", "max_pool1d", "adaptive_max_pool2d"),
        ("pair", "pool_padding"),
    ),
    "scaled_dot_product_attention": Drill(
        "fn.attention:scaled_dot_product_attention",
        "Lab 3 · attention",
        2,
        (
            f"{ATTENTION}test_attention_is_torchs",
            f"{ATTENTION}test_causal_counts_from_the_first_key",
            f"{ATTENTION}test_a_query_that_may_look_nowhere_gets_zeros_and_no_gradient",
            f"{ATTENTION}test_large_scores_do_not_overflow",
            f"{ATTENTION}test_dropout_of_weights_keeps_their_mean_and_is_a_function_of_its_key",
        ),
        (
            "Scores are the products of every query with every key, over √d_head unless a scale is given.",
            "A boolean mask is True where a query may look; False is -∞ before the softmax. Another mask is added.",
            "A query that may look nowhere gets zeros. block_size and native say how, not what: leave them unused.",
        ),
        ("scaled_dot_product_attention",),
        ("causal_mask",),
    ),
    "multi_head_attention": Drill(
        "fn.attention:multi_head_attention",
        "Lab 3 · attention",
        2,
        (
            f"{ATTENTION}test_multi_head_attention_is_torchs_on_its_own_parameters",
            f"{ATTENTION}test_rotary_turns_queries_and_keys_of_every_head",
        ),
        (
            "in_proj_weight is three weights, one under the other: of queries, keys, values.",
            "Project, split the heads, attend, merge the heads, project out.",
            "Rotary turns the queries and the keys of every head, after the split; values are not turned.",
        ),
        ("multi_head_attention_forward",),
        ("scaled_dot_product_attention", "attention_weights", "split_heads", "merge_heads"),
    ),
    "causal_mask": Drill(
        "fn.attention:causal_mask",
        "Lab 3 · attention",
        1,
        (f"{ATTENTION}test_causal_mask_by_hand", f"{ATTENTION}test_weights_are_shares_that_make_the_output"),
        ("Which keys may the first query see?", "Its own alone: the diagonal belongs to the past.", "ones, then tril"),
    ),
    "sinusoidal_encoding": Drill(
        "fn.positions:sinusoidal_encoding",
        "Lab 3 · positions",
        2,
        (
            f"{POSITIONS}test_sinusoidal_is_its_formula",
            f"{POSITIONS}test_the_clocks_are_those_of_the_paper",
            f"{POSITIONS}test_a_shift_of_sinusoidal_positions_turns_each_pair",
        ),
        (
            "A pair of columns has one frequency, base^(-2i / d_model): sine in the even one, cosine in the odd one.",
            "The angles are an outer product, positions by frequencies; in float64, for positions grow large.",
            "torch.stack([sin, cos], dim=-1).flatten(-2) interleaves them.",
        ),
    ),
    "accuracy": Drill(
        "fn.metrics:accuracy",
        "Lab 0 · metrics",
        1,
        (f"{LOSSES}test_accuracy_is_scikit_learns", f"{LOSSES}test_the_metrics_hang_together"),
        (
            "Which axis holds the classes?",
            "argmax over axis 1 takes the first of equal scores.",
            "A mean needs floats.",
        ),
    ),
    "top_k_accuracy": Drill(
        "fn.metrics:top_k_accuracy",
        "Lab 1 · metrics",
        2,
        (
            f"{LOSSES}test_top_k_accuracy_is_scikit_learns",
            f"{LOSSES}test_metrics_over_positions_count_what_is_not_ignored",
            f"{LOSSES}test_of_equal_scores_the_lower_class_outranks",
        ),
        (
            "A target is among the best k if fewer than k classes outrank it.",
            "A class outranks it with a larger score, or with an equal one and a lower number.",
            "What is ignored is left out of the sum and of the number that divides it.",
        ),
    ),
    "sgd": Drill(
        "fn.optim:sgd",
        "Lab 0 · optimizers",
        2,
        (
            *_cases(FOLLOWS, "sgd", "momentum", "nesterov", "sgd with decay", "all of sgd"),
            *_cases(f"{OPTIM}test_nothing_given_is_changed", "momentum"),
        ),
        (
            "The state holds `step` and `velocity`, as sgd_init makes it; return new ones, change nothing.",
            "Decay is added to the gradient first; then v ← μv + g; then the move is along v.",
            "Nesterov moves along g + μv, with the new v.",
        ),
        ("torch.optim.Optimizer.__init__", "torch.optim.sgd.sgd"),
        ("sgd_init",),
    ),
    "adam": Drill(
        "fn.optim:adam",
        "Lab 0 · optimizers",
        2,
        (
            *_cases(FOLLOWS, "adam with eps", "adam", "adam with L2"),
            *_cases(f"{OPTIM}test_nothing_given_is_changed", "adam"),
        ),
        (
            "The state holds `step`, `mean` and `square`, as adam_init makes it. Steps are counted from 1.",
            "Both moments start at 0 and are too small at first: divide each by 1 - βᵗ.",
            "ε is added to the root of the corrected square, outside of it.",
        ),
        ("torch.optim.Optimizer.__init__", "torch.optim.adam.adam", "torch.optim.adamw.adamw"),
        ("adam_init",),
    ),
    "clip_grad_norm": Drill(
        "fn.optim:clip_grad_norm",
        "Lab 2 · optimizers",
        1,
        (f"{OPTIM}test_clip_grad_norm_is_torchs",),
        (
            "One norm, over all leaves together: the direction of the whole gradient stays.",
            "√ of the sum of all squares; what is returned is the norm before clipping.",
            "The scale is max_norm / (norm + 1e-6), never above 1.",
        ),
        ("torch.nn.utils.clip_grad_norm_", "torch.nn.utils.get_total_norm"),
    ),
    "cosine_schedule": Drill(
        "fn.optim:cosine_schedule",
        "Lab 2 · schedules",
        1,
        (
            *_cases(f"{OPTIM}test_schedule_is_torchs_at_every_step", "cosine", "cosine above a floor"),
            f"{OPTIM}test_cosine_stays_at_its_end",
        ),
        (
            "Half a cosine: 1 at step 0, -1 at total_steps.",
            "(1 + cos(π · progress)) / 2 goes from 1 to 0; stretch it between lr and min_lr.",
            "progress stops at 1; it is a tensor, so that a step under vmap or jit will do.",
        ),
    ),
    "warmup_schedule": Drill(
        "fn.optim:warmup_schedule",
        "Lab 2 · schedules",
        1,
        _cases(f"{OPTIM}test_schedule_is_torchs_at_every_step", "warm-up", "no warm-up", "warm-up, then cosine"),
        (
            "The first step, number 0, is not to be wasted on a rate of 0.",
            "(step + 1) / warmup_steps, at most 1.",
            "torch.clamp(…, max=1.0) takes tensors; torch.as_tensor takes either.",
        ),
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
        (
            "torch.autograd.grad",
            "torch.autograd.backward",
            "torch.func.grad",
            "torch.func.grad_and_value",
            "torch.func.vjp",
        ),
    ),
    "numerical_grad": Drill(
        "fn.gradcheck:numerical_grad",
        "Lab 0 · gradients",
        2,
        (f"{GRADCHECK}test_numerical_grad_is_autograds", f"{GRADCHECK}test_nothing_is_left_moved"),
        (
            "Two values of f per entry of θ, on either side of it, and nothing else moved.",
            "(f(θ + εe) - f(θ - εe)) / 2ε: from one side alone the error would be of order ε, not ε².",
            "tree.flatten gives the leaves by name, tree.unflatten the tree back; move a copy of the leaf.",
        ),
        (
            "torch.autograd.grad",
            "torch.autograd.backward",
            "torch.func.grad",
            "torch.func.grad_and_value",
            "torch.func.vjp",
        ),
    ),
    "functional_loop": Drill(
        "experiments.lab0_mlp:functional_loop",
        "Lab 0 · the whole loop",
        2,
        _cases(f"{LOOPS}test_a_loop_is_gradient_descent_by_hand", "functional"),
        (
            "An objective is a function of params; grad_and_value makes of it one that returns (grads, loss).",
            "SGD with rate 0.1 and momentum 0.9, whose state optim.sgd_init makes; everything is a new value.",
            "logits, _ = mlp_apply(params, {}, x, train=True). Return the list of the losses before each step.",
        ),
        ("torch.optim.Optimizer.__init__", "torch.Tensor.backward"),
    ),
    "classic_loop": Drill(
        "experiments.lab0_mlp:classic_loop",
        "Lab 0 · the whole loop",
        1,
        _cases(f"{LOOPS}test_a_loop_is_gradient_descent_by_hand", "classic"),
        (
            "Five lines: forward, loss, backward, step, zero_grad. The optimizer is made once.",
            "torch.optim.SGD with rate 0.1 and momentum 0.9; cross_entropy takes the logits as they are.",
            "backward adds to what is in .grad. loss.item() is a number without its graph.",
        ),
    ),
    "train_step": Drill(
        "fn.train:train_step",
        "Lab 2 · the trainer",
        2,
        (
            *_cases(f"{TRAIN}test_a_step_is_the_classic_loops", "mlp", "cnn"),
            *_cases(f"{TRAIN}test_a_step_changes_nothing_that_it_was_given", "cnn"),
            f"{TRAIN}test_an_epoch_is_the_step_repeated_under_the_keys_of_its_seed",
            *_cases(f"{TRAIN}test_accumulated_gradients_are_those_of_the_large_batch", "0.0-3"),
            f"{TRAIN}test_accumulation_hands_the_statistics_on_and_draws_anew_for_each_part",
        ),
        (
            "grad_and_value(objective, has_aux=True) gives (grads, (loss, (metrics, state))).",
            "The key of this step is fold_in(key, ts.opt_state['step']); the new state of the model goes on.",
            "With accumulate > 1, `accumulated` gives the same from parts. grad_norm is global_norm(grads).",
        ),
        (),
        ("accumulated",),
    ),
    "accumulated": Drill(
        "fn.train:accumulated",
        "Lab 2 · the trainer",
        2,
        (
            *_cases(f"{TRAIN}test_accumulated_gradients_are_those_of_the_large_batch", "0.0-2", "0.0-3", "0.2-5"),
            f"{TRAIN}test_accumulation_hands_the_statistics_on_and_draws_anew_for_each_part",
        ),
        (
            "chunk cuts the batch; its last part may be smaller, and then it counts for less.",
            "Each part's share is len(y_part) / len(y), of its gradients, loss and metrics.",
            "The state that one part leaves is what the next begins with; its key is fold_in(key, i).",
        ),
    ),
    "train_one_epoch": Drill(
        "fn.train:train_one_epoch",
        "Lab 2 · the trainer",
        1,
        (
            f"{TRAIN}test_an_epoch_is_the_step_repeated_under_the_keys_of_its_seed",
            *_cases(f"{TRAIN}test_the_metrics_of_an_epoch_are_means_over_examples", "7"),
            f"{TRAIN}test_an_epoch_that_was_interrupted_ends_with_the_means_of_all_of_it",
        ),
        (
            "checked_step(ts, x, y, step=step, key=key) is one step, metrics as numbers; the key is run_key(seed).",
            "add_examples(totals, metrics, n) sums over examples, mean_per_example divides: a short batch weighs less.",
            "After every step: each(ts, metrics, totals), if given. totals may be those of an interrupted epoch.",
        ),
        (),
        ("checked_step", "run_key"),
    ),
    "eval_one_epoch": Drill(
        "fn.train:eval_one_epoch",
        "Lab 2 · the trainer",
        1,
        _cases(f"{TRAIN}test_evaluation_weights_a_short_last_batch_and_changes_nothing", "10-mlp", "23-cnn", "10-cnn"),
        (
            "In evaluation apply has train=False, and the state that it returns is not used.",
            "A batch's mean times its size, summed, over the number of examples.",
            "A decorator keeps autograd from recording.",
        ),
    ),
    "checkpoint_save": Drill(
        "fn.checkpoint:save",
        "Lab 2 · checkpoints",
        3,
        (
            f"{CHECKPOINT}test_what_is_saved_comes_back_bit_for_bit",
            f"{CHECKPOINT}test_the_last_few_and_the_best_are_kept",
            f"{CHECKPOINT}test_steps_beyond_eight_digits_are_still_in_order",
            f"{CHECKPOINT}test_a_write_that_fails_leaves_what_was_there",
        ),
        (
            "safetensors takes a flat dict of contiguous tensors that share nothing: tree.flatten, a copy of each.",
            "The header is {KEY: the JSON of {version, progress}}; write_digested names and writes the file.",
            "First write, then remove what is too many: a crash between the two must cost nothing.",
        ),
        (),
        ("find", "KEY", "VERSION"),
    ),
    "Examples": Drill(
        "experiments.lab6_data:Examples",
        "Lab 6 · data",
        1,
        (f"{LOOPS}test_a_dataset_gives_what_batches_gather",),
        (
            "A length, and an example for an index: that is all that a DataLoader asks for.",
            "The transform takes a batch and a key per image: give it a batch of one, and take the one out again.",
            "The key of an example is fold_in(rng_key(seed, epoch), index).",
        ),
    ),
    "batches": Drill(
        "fn.data.loader:batches",
        "Lab 6 · data",
        2,
        (
            f"{DATA}test_a_pass_visits_every_example_once",
            f"{DATA}test_an_epoch_can_begin_at_any_batch",
            f"{DATA}test_every_example_has_a_key_of_its_own_in_every_epoch",
        ),
        (
            "epoch_order(n, seed=…, epoch=…) is the order; without a seed it is the split's own.",
            "Tensor.split cuts the order into batches, the last one shorter; `start` counts batches.",
            "Gather(split, augment, key, moves_targets)[indices] takes a batch; the key is rng_key(seed, epoch).",
        ),
        (),
        ("epoch_order", "Gather"),
    ),
    "freeze": Drill(
        "fn.freezing:freeze",
        "Lab 4 · freezing",
        3,
        (
            *_cases(f"{FREEZING}test_frozen_leaves_stay_and_trained_ones_move", "head", "backbone.bn1 head"),
            f"{FREEZING}test_frozen_statistics_move_when_asked_to",
            *_cases(f"{FREEZING}test_the_optimizer_holds_nothing_for_frozen_leaves", "head"),
            f"{FREEZING}test_the_gradient_is_that_of_the_whole_at_the_trained_leaves",
        ),
        (
            "A model is Model(init, apply). The new init splits the parameters: tree.split; the rest goes into state.",
            "The new apply merges them again, and wraps the new state as it was.",
            "In training options['modes'] = trained_modes(state['state'], params) keeps a frozen norm's statistics.",
        ),
        (),
        ("trained_modes",),
    ),
    "box_iou": Drill(
        "fn.boxes:box_iou",
        "Lab 5 · boxes",
        1,
        _cases(f"{BOXES}test_overlaps_are_torchvisions", "box_iou"),
        (
            "Every box of the one with every box of the other: give the one an axis more.",
            "What is shared begins at the larger of the lower corners, and ends at the smaller of the upper ones.",
            "A negative width is none: clamp both before they are multiplied, or two of them make an area.",
        ),
        ("torchvision.ops.boxes.box_iou", "torchvision.ops.boxes._box_inter_union"),
        ("box_area",),
    ),
    "nms": Drill(
        "fn.boxes:nms",
        "Lab 5 · boxes",
        2,
        (
            *_cases(f"{BOXES}test_nms_is_torchvisions_on_a_thousand_sets", "the first"),
            f"{BOXES}test_boxes_without_an_area_strike_nobody_out",
        ),
        (
            "Best first. A box that is struck out strikes nobody out itself.",
            "sort(descending=True, stable=True): of equal scores the earlier box is the better one.",
            "Take the best that is left, keep it, drop all that overlap it by more than the threshold, repeat.",
        ),
        ("nms", "batched_nms"),
        ("box_iou",),
    ),
    "batched_nms": Drill(
        "fn.boxes:batched_nms",
        "Lab 5 · boxes",
        2,
        _cases(f"{BOXES}test_nms_is_torchvisions_on_a_thousand_sets", "the first"),
        (
            "Boxes of two classes never strike each other out.",
            "nms of each class alone, then all that is kept in the order of the scores.",
            "Of equal scores the earlier box comes first: sort the kept indices first, then, stably, by their scores.",
        ),
        ("nms", "batched_nms"),
        ("nms", "box_iou"),
    ),
    "encode": Drill(
        "fn.anchors:encode",
        "Lab 5 · anchors",
        1,
        (f"{BOXES}test_decode_undoes_encode",),
        (
            "Centres are measured in sizes of the anchor, sizes as a logarithm of a ratio.",
            "box_convert(…, 'xyxy', 'cxcywh') on both.",
            "The first two are divided by VARIANCES[0], the others by VARIANCES[1].",
        ),
        (),
        ("VARIANCES",),
    ),
    "decode": Drill(
        "fn.anchors:decode",
        "Lab 5 · anchors",
        1,
        (f"{BOXES}test_an_offset_of_one_is_a_tenth_and_a_fifth", f"{BOXES}test_decode_undoes_encode"),
        (
            "Undo encode line by line, from the last to the first.",
            "size = anchor size · exp(growth · VARIANCES[1])",
            "Back to corners at the end: box_convert(…, 'cxcywh', 'xyxy').",
        ),
        (),
        ("VARIANCES",),
    ),
    "match_anchors": Drill(
        "fn.anchors:match_anchors",
        "Lab 5 · anchors",
        3,
        (
            f"{BOXES}test_matching_is_the_best_anchor_of_each_object_and_all_above_the_threshold",
            f"{BOXES}test_where_two_objects_want_one_anchor_the_later_has_it",
        ),
        (
            "Two rules: an anchor takes the object it overlaps most, if by enough; an object takes its best anchor.",
            "The second rule goes before the first. What is not present must not win a maximum: overlap -1.",
            "Under vmap, index with no numbers of Python: one_hot of the best anchors, then a maximum over objects.",
        ),
    ),
    "average_precision": Drill(
        "fn.average_precision:area_under_curve",
        "Lab 5 · average precision",
        3,
        (
            f"{BOXES}test_average_precision_by_hand",
            f"{BOXES}test_the_perfect_and_the_empty_detector",
            *_cases(f"{BOXES}test_average_precision_is_pycocotools_on_300_cases", "the first"),
        ),
        (
            "Two running sums along the detections: the right ones, and those neither right nor left out.",
            "At each recall the best precision from there on: flip, cummax, flip back; 0 beyond what is reached.",
            "searchsorted(recall, RECALLS) finds the first detection that reaches each recall; pad precision by one 0.",
        ),
        (),
        ("RECALLS",),
    ),
}
