"""The last drill of each lab is the whole of it: several functions in one file, held by the lab's own checks."""

BOXES, ANCHORS = "fn.detection.boxes:", "fn.detection.anchors:"

WHOLES = {
    "lab0": tuple(
        f"experiments.lab0_mlp:{f}"
        for f in ("mlp_loss", "overfit_few", "classic_loop", "functional_loop", "train_and_test")
    ),
    "lab1": (
        "fn.conv:conv2d_naive",
        "fn.conv:conv2d_unfold",
        "experiments.lab1_cnn:weighted_sum",
        "experiments.lab1_cnn:overfit_few",
        "experiments.lab1_cnn:train_and_test",
    ),
    "lab2": (
        "fn.train_variants:accumulated",
        *(f"fn.train:{f}" for f in ("train_step", "eval_one_epoch")),
        "fn.metrics:top_k_accuracy",
        "experiments.lab2_training:largest_difference",
    ),
    "lab3": (
        *(f"fn.attention:{f}" for f in ("causal_mask", "attention_weights", "multi_head_attention")),
        *(f"experiments.lab3_transformer:{f}" for f in ("train", "evaluate", "attention_of")),
    ),
    "lab4": (
        *(f"fn.transfer:{f}" for f in ("head_apply", "attach_head", "transfer_apply")),
        *(f"experiments.lab4_pretrained:{f}" for f in ("load_task", "train_way")),
    ),
    "lab5": (
        *(f"{BOXES}{f}" for f in ("box_iou", "batched_nms")),
        *(f"{ANCHORS}{f}" for f in ("encode", "decode", "match_anchors")),
        "fn.detection.average_precision:area_under_curve",
    ),
    "lab6": (
        "fn.data.loader:epoch_order",
        "fn.data.loader:batches",
        *(f"experiments.lab6_data:{name}" for name in ("Examples", "make_loaders", "photographs")),
    ),
    "lab7": (
        *(f"fn.distributed:{f}" for f in ("own_parts", "part_shares", "pairwise_sum")),
        *(f"experiments.lab7_processes:{f}" for f in ("all_reduce_mean", "usual_step", "train")),
    ),
}
"""lab -> where its functions are, module:name, in the order in which they stand in the file"""
