"""The thirteen parts of the UniMed corpus and the rule by which each draws a caption in training.

Each part is converted to a corpus directory of its key's name. Sources without label-derived
captions have one text per image, for which ``uniform`` is that text.
"""

CAPTION_RULES: dict[str, str] = {
    "radimagenet": "uniform",  # 10 captions per label
    "chexpert": "uniform",  # 10 per label set
    "openi": "first",  # the original caption; three generated ones stay unused
    "chestxray8": "uniform",  # 10 per label set
    "mimic_cxr": "original:1",  # the report where there is one, else one of 10
    "rocov2": "uniform",
    "pmc_oa": "uniform",
    "llava_med_alignment": "uniform",
    "llava_med_hq60k": "uniform",  # figure caption and in-text mention
    "quilt1m": "uniform",
    "retina_part1": "uniform",  # 10, or 15 for grades of diabetic retinopathy
    "retina_part2": "uniform",
    "retina_part3": "uniform",
}
