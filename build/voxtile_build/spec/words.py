"""Words for the faults of a spec: what people write that stands elsewhere or nowhere, and pydantic's kinds."""

from __future__ import annotations

_NOT_NEEDED = "leave it out: the client reads the scan, and sends it in the right type"
OTHER_TRANSFORMS = {
    **dict.fromkeys(
        ("LoadImage", "EnsureChannelFirst", "AddChannel", "EnsureType", "CastToType", "ToTensor", "ToDevice"),
        _NOT_NEEDED,
    ),
    "SaveImage": "leave it out: the client writes the mask",
    "Resize": "its size differs from scan to scan, and it has no exact inverse; use Spacing with the voxel size that "
    "the network was trained with, or ResizeWithPadOrCrop",
    "Lambda": "Python is not run; use the transform that it stands for, such as MapLabelValue",
}
"""Transforms of MONAI that a chain cannot hold, and what to do."""

_RULE = 'of a rule: intensity = { rule = "range", a_min = …, a_max = … }, or a step of [[preprocessing]]'
OF_INPUT = {
    "pixdim": "MONAI's word for spacing; or write Spacing as a step of [[preprocessing]]",
    "axcodes": "MONAI's word for orientation; or write Orientation as a step of [[preprocessing]]",
    **dict.fromkeys(("a_min", "a_max", "b_min", "b_max", "clip"), _RULE),
    **dict.fromkeys(("lower", "upper", "mean", "std", "nonzero", "channel_wise", "subtrahend", "divisor"), _RULE),
}
"""Words that people write into [input], and where they belong."""

_IMAGE_ALONE = "leave it out: a chain is for the image alone, and a spec's transforms have no dictionary"
OF_A_STEP = {
    **dict.fromkeys(
        (
            "keys", "source_key", "mask_key", "label", "label_key", "image", "image_key", "allow_missing_keys",
            "meta_keys", "meta_key_postfix", "orig_keys", "orig_meta_keys", "start_coord_key", "end_coord_key",
        ),
        _IMAGE_ALONE,
    ),
    **dict.fromkeys(("dtype", "device", "to_tensor", "track_meta", "lazy"), _NOT_NEEDED),
    "prob": "leave it out: what training did at random is not done to a scan that is served",
}  # fmt: skip
"""Arguments of MONAI's transforms that a step has no use for, and what to do."""

AN_ARGUMENT = "an argument of the network's constructor stands in [network.args]"
ANYWHERE = {
    "patch_size": "nnU-Net's word for roi_size of [inferer]",
    "tile_step_size": "nnU-Net's word; overlap of [inferer] is 1 - tile_step_size",
    "batch_size": "max_batch_size of [serving] says how many tiles are run at once",
    **dict.fromkeys(("num_classes", "classes", "class_names"), "the names of the classes are labels of [output]"),
    **dict.fromkeys(
        ("spatial_dims", "in_channels", "out_channels", "img_size", "feature_size", "strides", "act", "norm"),
        AN_ARGUMENT,
    ),
    "checkpoint": "weights stand in [weights], with file and sha256",
}
"""Words that are no key of any table, and what says the same."""

PLAIN = {
    "model_type": "expected a table",
    "model_attributes_type": 'expected a table, such as { rule = "range", … }',
    "dict_type": "expected a table",
    "tuple_type": "expected a list, such as [1, 2, 3]",
    "list_type": "expected a list, such as [1, 2, 3]",
    "string_type": "expected text",
    "int_type": "expected a whole number",
    "int_from_float": "expected a whole number",
    "float_type": "expected a number",
    "bool_type": "expected true or false",
    "none_required": "expected nothing",
    "finite_number": "expected a finite number",
}
"""Pydantic's kinds of faults, in words of the file."""

PATTERNS = (
    ("[0-9a-f]{64}", "expected 64 characters of 0-9 and a-f, as `sha256sum FILE` prints them"),
    ("[RL][AP][SI]", "expected one letter of each pair R/L, A/P and S/I, in capitals, such as RAS"),
)
"""Parts of the regular expressions that texts must match, in words."""
