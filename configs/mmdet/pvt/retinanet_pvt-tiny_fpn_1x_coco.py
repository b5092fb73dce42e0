# box AP 36.7 (arXiv:2102.12122). Weights: Apache-2.0.
# Settings: github.com/whai362/PVT. Differs: there the last stage runs without the class token that it was trained
# with.
_base_ = ["../_base_/models/retinanet.py", "../_base_/schedules/1x_boxes.py"]
model = dict(backbone=dict(model="pvt_tiny", drop_path_rate=0.1))
