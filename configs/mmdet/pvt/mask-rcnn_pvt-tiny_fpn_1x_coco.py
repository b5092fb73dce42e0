# box AP 36.7, mask AP 35.1 (arXiv:2102.12122). Weights: Apache-2.0.
# Settings: github.com/whai362/PVT. Differs: there the last stage runs without the class token that it was trained
# with.
_base_ = ["../_base_/models/mask-rcnn.py", "../_base_/schedules/1x.py"]
model = dict(backbone=dict(model="pvt_tiny", drop_path_rate=0.1))
