"""Lab 5: boxes, anchors, average precision"""

from experiments.drill.catalogue.row import BOXES, Drill, cases

DRILLS = {
    "box_iou": Drill(
        "fn.detection.boxes:box_iou",
        "Lab 5 · boxes",
        1,
        cases(f"{BOXES}test_overlaps_are_torchvisions", "box_iou"),
        (
            "Every box of the one with every box of the other: give the one an axis more.",
            "What is shared begins at the larger of the lower corners, and ends at the smaller of the upper ones.",
            "A negative width is none: clamp both before they are multiplied, or two of them make an area.",
        ),
        ("box_iou", "box_inter_union"),
        ("box_area",),
    ),
    "nms": Drill(
        "fn.detection.boxes:nms",
        "Lab 5 · boxes",
        2,
        cases(f"{BOXES}test_nms_is_torchvisions_on_a_thousand_sets", "the first"),
        (
            "Best first. A box that is struck out strikes nobody out itself.",
            "sort(descending=True, stable=True): of equal scores the earlier box is the better one.",
            "Take the best that is left, keep it, drop all that overlap it by more than the threshold, repeat.",
        ),
        ("nms", "batched_nms", "fn.detection.boxes.nms_naive"),
        ("box_iou",),
        edges=(
            f"{BOXES}test_boxes_without_an_area_strike_nobody_out",
            *cases(f"{BOXES}test_nms_refuses_nan", "0", "1"),
        ),
    ),
    "batched_nms": Drill(
        "fn.detection.boxes:batched_nms",
        "Lab 5 · boxes",
        2,
        cases(f"{BOXES}test_nms_is_torchvisions_on_a_thousand_sets", "the first"),
        (
            "Boxes of two classes never strike each other out.",
            "nms of each class alone, then all that is kept in the order of the scores.",
            "Of equal scores the earlier box comes first: sort the kept indices first, then, stably, by their scores.",
        ),
        ("nms", "batched_nms"),
        ("nms", "box_iou"),
    ),
    "encode": Drill(
        "fn.detection.anchors:encode",
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
        "fn.detection.anchors:decode",
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
        "fn.detection.anchors:match_anchors",
        "Lab 5 · anchors",
        3,
        (f"{BOXES}test_matching_is_the_best_anchor_of_each_object_and_all_above_the_threshold",),
        (
            "Two rules: an anchor takes the object it overlaps most, if by enough; an object takes its best anchor.",
            "The second rule goes before the first. What is not present must not win a maximum: overlap -1.",
            "Under vmap, index with no numbers of Python: one_hot of the best anchors, then a maximum over objects.",
        ),
        edges=(
            f"{BOXES}test_where_two_objects_want_one_anchor_the_later_has_it",
            f"{BOXES}test_an_object_that_overlaps_no_anchor_has_none",
        ),
    ),
    "average_precision": Drill(
        "fn.detection.average_precision:area_under_curve",
        "Lab 5 · metrics",
        3,
        (
            f"{BOXES}test_average_precision_by_hand",
            *cases(f"{BOXES}test_average_precision_is_pycocotools_on_300_cases", "the first"),
        ),
        (
            "Two running sums along the detections: the right ones, and those neither right nor left out.",
            "At each recall the best precision from there on: flip, cummax, flip back; 0 beyond what is reached.",
            "searchsorted(recall, RECALLS) finds the first detection that reaches each recall; pad precision by one 0.",
        ),
        (),
        ("RECALLS",),
        edges=(f"{BOXES}test_the_perfect_and_the_empty_detector",),
    ),
}
