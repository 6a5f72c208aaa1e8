"""Lab 2: the parts of a trainer"""

from experiments.drill.catalogue.row import CHECKPOINT, LAYERS, OPTIM, TRAIN, Drill, cases

DRILLS = {
    "dropout": Drill(
        "fn.layers:dropout",
        "Lab 2 · layers",
        1,
        (
            f"{LAYERS}test_dropout_keeps_a_share_of_1_minus_p_and_the_mean",
            f"{LAYERS}test_dropout_is_a_mask_and_a_function_of_its_key",
        ),
        (
            "What is E[y] if a share p of the entries is dropped? It is to be x.",
            "uniform(key, x.shape) is in [0, 1): keep where it is at least p, and divide what is kept by 1 - p.",
            "Where p is 1 everything is dropped, and 1 / (1 - p) must not be computed.",
        ),
        ("dropout", "native_dropout", "bernoulli", "alpha_dropout"),
        edges=(f"{LAYERS}test_dropout_at_its_ends",),
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
        ("clip_grad_norm", "get_total_norm"),
    ),
    "cosine_schedule": Drill(
        "fn.optim:cosine_schedule",
        "Lab 2 · schedules",
        1,
        cases(f"{OPTIM}test_schedule_is_torchs_at_every_step", "cosine"),
        (
            "Half a cosine: 1 at step 0, -1 at total_steps.",
            "(1 + cos(π · progress)) / 2 goes from 1 to 0; stretch it between lr and min_lr.",
            "progress stops at 1; it is a tensor, so that a step under vmap or jit will do.",
        ),
        options=cases(f"{OPTIM}test_schedule_is_torchs_at_every_step", "cosine above a floor"),
        edges=(f"{OPTIM}test_cosine_stays_at_its_end",),
    ),
    "warmup_schedule": Drill(
        "fn.optim:warmup_schedule",
        "Lab 2 · schedules",
        1,
        cases(f"{OPTIM}test_schedule_is_torchs_at_every_step", "warm-up"),
        (
            "The first step, number 0, is not to be wasted on a rate of 0.",
            "(step + 1) / warmup_steps, at most 1.",
            "torch.clamp(…, max=1.0) takes tensors; torch.as_tensor takes either.",
        ),
        options=cases(f"{OPTIM}test_schedule_is_torchs_at_every_step", "warm-up, then cosine"),
        edges=cases(f"{OPTIM}test_schedule_is_torchs_at_every_step", "no warm-up"),
    ),
    "train_step": Drill(
        "fn.train:train_step",
        "Lab 2 · the trainer",
        2,
        (
            *cases(f"{TRAIN}test_a_step_is_the_classic_loops", "mlp", "cnn"),
            *cases(f"{TRAIN}test_a_step_changes_nothing_that_it_was_given", "cnn"),
            f"{TRAIN}test_an_epoch_is_the_step_repeated_under_the_keys_of_its_seed",
        ),
        (
            "grad_and_value(objective, has_aux=True) gives (grads, (loss, (metrics, state))).",
            "The key of this step is fold_in(key, ts.opt_state['step']); the new state of the model goes on.",
            "The metrics are the objective's and grad_norm, which is global_norm(grads).",
        ),
    ),
    "accumulated": Drill(
        "fn.train_variants:accumulated",
        "Lab 2 · the trainer",
        2,
        (
            *cases(f"{TRAIN}test_accumulated_gradients_are_those_of_the_large_batch", "0.0-2", "0.0-3", "0.2-5"),
            f"{TRAIN}test_accumulation_hands_the_statistics_on_and_draws_anew_for_each_part",
        ),
        (
            "chunk cuts the batch; its last part may be smaller, and then it counts for less.",
            "A part's share, of all that it gives, is count_targets(y_part) / count_targets(y); 0 · NaN is NaN.",
            "The state that one part leaves is what the next begins with; its key is fold_in(key, i).",
        ),
        edges=cases(
            f"{TRAIN}test_parts_weigh_the_targets_that_count", "0.0-3-a few", "0.0-2-whole parts", "0.0-3-none"
        ),
    ),
    "train_one_epoch": Drill(
        "fn.train:train_one_epoch",
        "Lab 2 · the trainer",
        1,
        (
            f"{TRAIN}test_an_epoch_is_the_step_repeated_under_the_keys_of_its_seed",
            *cases(f"{TRAIN}test_the_metrics_of_an_epoch_are_means_over_examples", "7"),
        ),
        (
            "check_finite(step) is the step with metrics as numbers; its key is run_key(seed), the same for all steps.",
            "add_examples(totals, metrics, count_targets(y)) sums; mean_per_example divides the sums.",
            "After every step on_step(ts, metrics), if given, with the new state.",
        ),
        (),
        ("check_finite", "run_key"),
        edges=(
            *cases(f"{TRAIN}test_the_metrics_of_an_epoch_are_means_over_what_counts", "2"),
            *cases(f"{TRAIN}test_bad_input_stops_training_before_the_update", "mlp-fc1.weight"),
        ),
    ),
    "eval_one_epoch": Drill(
        "fn.train:eval_one_epoch",
        "Lab 2 · the trainer",
        1,
        (
            *cases(
                f"{TRAIN}test_evaluation_weights_a_short_last_batch_and_changes_nothing", "10-mlp", "23-cnn", "10-cnn"
            ),
        ),
        (
            "In evaluation apply has train=False, and the state that it returns is not used.",
            "A batch's metric.mean(logits, y) times metric.over(y), summed; divided by the sum of what they are over.",
            "A decorator keeps autograd from recording.",
        ),
        options=cases(f"{TRAIN}test_evaluation_records_no_graph_and_leaves_the_mode_as_it_was", "True", "False"),
        edges=cases(f"{TRAIN}test_evaluation_is_over_what_counts_whatever_the_batches", "2-a few", "1-whole parts"),
    ),
    "checkpoint_save": Drill(
        "fn.checkpoint:save",
        "Lab 2 · checkpoints",
        3,
        (f"{CHECKPOINT}test_what_is_saved_comes_back_bit_for_bit",),
        (
            "safetensors takes a flat dict of contiguous tensors that share nothing: tree.flatten, a copy of each.",
            "The header is {KEY: the JSON of {version, progress}}; write_digested names and writes the file.",
            "First write, then remove what is too many: a crash between the two must cost nothing.",
        ),
        (),
        ("find", "KEY", "VERSION"),
        options=(f"{CHECKPOINT}test_the_last_few_and_the_best_are_kept",),
        edges=(
            f"{CHECKPOINT}test_steps_beyond_eight_digits_are_still_in_order",
            f"{CHECKPOINT}test_a_write_that_fails_leaves_what_was_there",
        ),
    ),
}
